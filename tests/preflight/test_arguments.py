from mmengine.config import ConfigDict
from mmengine.registry import HOOKS

from ccop_mm.engine import hooks  # noqa: F401  registers them
from ccop_mm.preflight.arguments import (
    ALWAYS,
    DETECTION,
    PRETRAINING,
    accepted_arguments,
    closest,
    default_argument,
    find_class,
    type_name,
)


def test_arguments_of_open_constructors():
    class Open:
        def __init__(self, first, **kwargs):
            pass

    class Closed:
        def __init__(self, first):
            pass

    class Forwarding(Closed):
        def __init__(self, *args, second=0, **kwargs):
            super().__init__(*args, **kwargs)

    assert accepted_arguments(Open) is None
    assert accepted_arguments(Closed) == {'first'}
    assert accepted_arguments(Forwarding) == {'first', 'second'}


def test_default_argument_is_that_of_the_first_class_that_names_it():
    class Base:
        def __init__(self, first=1, second=2, third=3):
            pass

    class Derived(Base):
        def __init__(self, second, first=5, **kwargs):
            super().__init__(first=first, **kwargs)

    assert [default_argument(Derived, name) for name in ('first', 'second', 'third', 'fourth')] == [5, None, 3, None]
    assert default_argument(None, 'first') is None and default_argument(len, 'obj') is None


def test_type_name():
    assert type_name(dict(type='mmdet.CocoDataset')) == type_name(ConfigDict(type='CocoDataset')) == 'CocoDataset'
    assert type_name(dict(type=ConfigDict)) == 'ConfigDict'
    assert type_name(dict()) == type_name(None) == type_name(dict(type=None)) == ''


def test_closest():
    assert closest('hous', {'house': 1, 'mouse': 2}) == 'house'
    assert closest('tree', ['house']) is None


def test_automatic_hooks_are_registered():
    for name in {**ALWAYS, **PRETRAINING, **DETECTION}.values():
        assert find_class(HOOKS, f'mmselfsup.{name}', 'mmdet').__name__ == name

from mmengine.model import MMDistributedDataParallel, is_model_wrapper
from torch import nn

from ccop_mm.utils.model import unwrap_model


def wrap(module):
    """Wraps a module without the process group that the constructor requires."""
    wrapper = MMDistributedDataParallel.__new__(MMDistributedDataParallel)
    nn.Module.__init__(wrapper)
    wrapper.module = module
    assert is_model_wrapper(wrapper)
    return wrapper


def test_plain_model_is_returned():
    model = nn.Linear(1, 1)
    assert unwrap_model(model) is model


def test_nested_wrappers_are_removed():
    model = nn.Linear(1, 1)
    assert unwrap_model(wrap(model)) is model
    assert unwrap_model(wrap(wrap(model))) is model


def test_attribute_named_module_is_not_a_wrapper():
    model = nn.Sequential()
    model.module = nn.Linear(1, 1)
    assert unwrap_model(model) is model

import pytest

from ccop_mm.compat.mmselfsup import drop_missing_locations


def test_drop_missing_locations():
    from mmselfsup.registry import LOOPS, MODELS

    LOOPS._locations, LOOPS._imported = ['mmselfsup.engine.runner'], False  # the values in mmselfsup
    with pytest.raises(ModuleNotFoundError, match='mmselfsup.engine.runner'):
        LOOPS.get('EpochBasedTrainLoop')
    drop_missing_locations()
    assert LOOPS.get('EpochBasedTrainLoop').__name__ == 'EpochBasedTrainLoop'
    assert MODELS._locations == ['mmselfsup.models']

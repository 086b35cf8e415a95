import pytest
import torch
from mmengine.config import Config

from ccop_mm.evaluation import load_model
from ccop_mm.utils.errors import InputError

CONFIG = """
custom_imports = dict(imports=['ccop_mm'])
default_scope = 'mmselfsup'
data_preprocessor = dict(mean=[1.0, 2, 3], std=[4.0, 5, 6], bgr_to_rgb=True)
model = dict(
    type='CCOP',
    backbone=dict(type='mmdet.ResNet', depth=18, base_channels=4, norm_eval=False, frozen_stages=-1),
    neck=dict(type='mmdet.FPN', in_channels=[4, 8, 16, 32], out_channels=4, num_outs=4),
    image_projector=dict(type='ProjectionMLP', in_channels=32, hid_channels=8, out_channels=8),
    object_projector=dict(type='ProjectionMLP', in_channels=196, hid_channels=8, out_channels=8),
    queue_len=16,
    feat_dim=8,
)
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / 'config.py'
    path.write_text(CONFIG)
    return path


def have_equal_parameters(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_random_weights_depend_on_the_seed(config, capsys):
    model = load_model(config, seed=5)
    assert have_equal_parameters(model, load_model(Config.fromfile(config), seed=5))
    assert not have_equal_parameters(model, load_model(config, seed=6))
    # init_weights zero-initializes the last normalization of a residual block; the constructor does not.
    assert not model.backbone.layer1[0].bn2.weight.any()
    assert model.data_preprocessor.std.flatten().tolist() == [4, 5, 6]
    assert capsys.readouterr().out == ''


def test_checkpoint_is_loaded(config, tmp_path):
    model = load_model(config, seed=5)
    torch.save({'state_dict': model.state_dict(), 'meta': {'epoch': 1}}, tmp_path / 'model.pth')
    assert have_equal_parameters(model, load_model(config, tmp_path / 'model.pth', seed=6))


def test_checkpoint_that_does_not_match(config, tmp_path):
    path = tmp_path / 'model.pth'

    def assert_rejected(state, message):
        torch.save({'state_dict': state}, path)
        with pytest.raises(InputError, match=message) as caught:
            load_model(config, path)
        assert '\n' not in str(caught.value)
        assert str(path) in str(caught.value)

    state = load_model(config).state_dict()
    neck = [key for key in state if key.startswith('neck.')]
    assert_rejected(
        {key: value for key, value in state.items() if key not in neck},
        rf'missing.*{", ".join(neck[:4])} and {len(neck) - 4} more$',
    )
    assert_rejected({**state, 'head.weight': torch.zeros(1)}, 'unexpected.*: head.weight$')
    wider = {**state, 'backbone.conv1.weight': torch.zeros(8, 3, 7, 7)}
    assert_rejected(wider, 'backbone.conv1.weight: .*8, 3, 7, 7.*4, 3, 7, 7')


def test_bad_input(config, tmp_path):
    with pytest.raises(InputError, match='absent.py'):
        load_model(tmp_path / 'absent.py')
    with pytest.raises(InputError, match='absent.pth'):
        load_model(config, tmp_path / 'absent.pth')
    config.write_text('lr = 1')
    with pytest.raises(InputError, match='config.py.*model'):
        load_model(config)

"""studies/configs/fcos_small.py takes over the backbone and the FPN of ccop_small.py."""

from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from ccop_mm.evaluation import load_model
from ccop_mm.weights import CCOPPretrained

CONFIGS = Path(__file__).resolve().parents[2] / 'studies' / 'configs'


def test_weights_of_ccop_are_loaded_completely(tmp_path):
    state = load_model(CONFIGS / 'ccop_small.py', seed=3).state_dict()
    torch.save(dict(state_dict=state), tmp_path / 'ccop.pth')
    with DefaultScope.overwrite_default_scope('mmdet'):
        detector = MODELS.build(Config.fromfile(CONFIGS / 'fcos_small.py').model)
    CCOPPretrained(str(tmp_path / 'ccop.pth'))(detector)
    loaded = detector.state_dict()
    backbone = [key for key in loaded if key.startswith('backbone.')]
    assert len(backbone) > 100 and all(torch.equal(loaded[key], state[key]) for key in backbone)
    neck = [key for key in loaded if key.startswith('neck.')]
    assert len(neck) == 3 * 2 * 6  # three levels of two convolutions with BN
    for key in neck:
        part, kind, level, rest = key.split('.', 3)
        assert torch.equal(loaded[key], state[f'{part}.{kind}.{int(level) + 1}.{rest}'])  # its first level is P3
    frozen = [name for name, parameter in detector.named_parameters() if not parameter.requires_grad]
    assert frozen == [] and detector.train().backbone.layer1[0].bn1.training
    prepared = [Config.fromfile(CONFIGS / name).model.data_preprocessor for name in ('fcos_small.py', 'ccop_small.py')]
    for name in ('mean', 'std', 'bgr_to_rgb'):
        assert prepared[0][name] == prepared[1][name]

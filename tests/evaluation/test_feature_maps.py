import pytest
import torch
from mmdet.models import ResNet
from mmselfsup.models.backbones import ResNet as SelfSupResNet
from mmselfsup.models.utils import SelfSupDataPreprocessor
from torch import nn

from ccop_mm.evaluation.feature_maps import feature_maps, normalize_views


class Model(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.eval()


@pytest.mark.parametrize('wanted', [(0, 1, 2, 3), (3,)])
def test_stages_whatever_the_backbone_hands_on(wanted):
    torch.manual_seed(0)
    whole = ResNet(18, base_channels=4, norm_eval=False)
    part = ResNet(18, base_channels=4, norm_eval=False, out_indices=wanted)
    part.load_state_dict(whole.state_dict())
    images = torch.randn(2, 3, 80, 80)
    maps = feature_maps(Model(part), images)
    whole.eval()
    assert list(maps) == ['C2', 'C3', 'C4', 'C5']
    for found, expected in zip(maps.values(), whole(images), strict=True):
        assert torch.equal(found, expected)
    assert not any(module._forward_hooks for module in part.modules())


def test_mmselfsups_resnet_counts_the_stem():
    backbone = SelfSupResNet(18, out_indices=[4])
    maps = feature_maps(Model(backbone), torch.randn(1, 3, 64, 64))
    assert [tuple(part.shape[1:]) for part in maps.values()] == [
        (64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2),
    ]  # fmt: skip


def test_half_precision_comes_out_as_float32():
    backbone = ResNet(18, base_channels=4, norm_eval=False).bfloat16()
    maps = feature_maps(Model(backbone), torch.randn(1, 3, 64, 64).bfloat16())
    assert {part.dtype for part in maps.values()} == {torch.float32}


def test_normalization_is_that_of_training():
    preprocessor = SelfSupDataPreprocessor(mean=(1.0, 2, 3), std=(2.0, 4, 8), bgr_to_rgb=True)
    views = torch.randint(256, (2, 6, 5, 3), dtype=torch.uint8)
    expected = preprocessor(dict(inputs=[views.permute(0, 3, 1, 2)], data_samples=[]))[0][0]
    found = normalize_views(preprocessor, list(views.numpy()), torch.device('cpu'))
    torch.testing.assert_close(found, expected)

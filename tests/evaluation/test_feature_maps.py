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


@pytest.mark.parametrize('out_indices', [(0, 1, 2, 3), (3,)])
def test_stages_do_not_depend_on_out_indices(out_indices):
    torch.manual_seed(0)
    reference = ResNet(18, base_channels=4, norm_eval=False)
    backbone = ResNet(18, base_channels=4, norm_eval=False, out_indices=out_indices)
    backbone.load_state_dict(reference.state_dict())
    images = torch.randn(2, 3, 80, 80)
    maps = feature_maps(Model(backbone), images)
    reference.eval()
    assert list(maps) == ['C2', 'C3', 'C4', 'C5']
    for actual, expected in zip(maps.values(), reference(images), strict=True):
        assert torch.equal(actual, expected)
    assert not any(module._forward_hooks for module in backbone.modules())


def test_mmselfsup_resnet_whose_out_indices_count_the_stem(generator):
    backbone = SelfSupResNet(18, out_indices=[4])
    maps = feature_maps(Model(backbone), torch.randn(1, 3, 64, 64, generator=generator))
    assert [tuple(part.shape[1:]) for part in maps.values()] == [
        (64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2),
    ]  # fmt: skip


def test_half_precision_is_converted_to_float32(generator):
    backbone = ResNet(18, base_channels=4, norm_eval=False).bfloat16()
    maps = feature_maps(Model(backbone), torch.randn(1, 3, 64, 64, generator=generator).bfloat16())
    assert {part.dtype for part in maps.values()} == {torch.float32}


def test_normalization_equals_that_of_training(generator):
    preprocessor = SelfSupDataPreprocessor(mean=(1.0, 2, 3), std=(2.0, 4, 8), bgr_to_rgb=True)
    views = torch.randint(256, (2, 6, 5, 3), dtype=torch.uint8, generator=generator)
    expected = preprocessor(dict(inputs=[views.permute(0, 3, 1, 2)], data_samples=[]))[0][0]
    actual = normalize_views(preprocessor, list(views.numpy()), torch.device('cpu'))
    torch.testing.assert_close(actual, expected)

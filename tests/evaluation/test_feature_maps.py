import pytest
import torch
from mmdet.models import FPN, CSPNeXt, CSPNeXtPAFPN, HRNet, ResNet
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


class Pyramid(Model):
    """Model with a neck and embeddings, as CCOP."""

    def __init__(self, backbone, neck):
        super().__init__(backbone)
        self.neck = neck
        self.eval()

    def embed_objects(self):
        raise NotImplementedError


@pytest.mark.parametrize('side', [64, 80, 65, 97, 333])
def test_levels_are_named_by_their_stride(side):
    retinanet = FPN([4, 8, 16, 32], 6, 5, start_level=1, add_extra_convs='on_output')
    model = Pyramid(ResNet(18, base_channels=4, norm_eval=False), retinanet)
    images = torch.zeros(1, 3, side, side + 40)
    maps = feature_maps(model, images)
    assert list(maps) == ['C2', 'C3', 'C4', 'C5', 'P3', 'P4', 'P5', 'P6', 'P7']
    for name, part in maps.items():
        stride = 2 ** int(name[1:])
        assert part.shape[2:] == (-(-side // stride), -(-(side + 40) // stride))


def test_levels_of_other_backbones():
    backbone = CSPNeXt(deepen_factor=0.167, widen_factor=0.125)
    model = Pyramid(backbone, CSPNeXtPAFPN([32, 64, 128], 24, num_csp_blocks=1))
    assert list(feature_maps(model, torch.zeros(1, 3, 96, 96))) == ['C3', 'C4', 'C5', 'P3', 'P4', 'P5']
    stage = dict(num_modules=1, num_branches=1, block='BOTTLENECK', num_blocks=(1,), num_channels=(4,))
    stages = {'stage1': stage}
    for number in range(2, 5):
        blocks, channels = (1,) * number, tuple(4 * 2**branch for branch in range(number))
        stages[f'stage{number}'] = dict(
            num_modules=1, num_branches=number, block='BASIC', num_blocks=blocks, num_channels=channels
        )
    assert list(feature_maps(Model(HRNet(stages)), torch.zeros(1, 3, 64, 64))) == ['C2', 'C3', 'C4', 'C5']


@pytest.mark.parametrize('bgr_to_rgb', [False, True])
def test_maps_are_contiguous_for_any_order_of_channels(generator, bgr_to_rgb):
    """mmcv's RoIAlign ignores strides; without the channel conversion, the input is a channels-last view."""
    preprocessor = SelfSupDataPreprocessor(mean=(1.0, 2, 3), std=(2.0, 4, 8), bgr_to_rgb=bgr_to_rgb)
    views = torch.randint(256, (2, 64, 64, 3), dtype=torch.uint8, generator=generator)
    images = normalize_views(preprocessor, list(views.numpy()), torch.device('cpu'))
    model = Pyramid(ResNet(18, base_channels=4, norm_eval=False), FPN([4, 8, 16, 32], 6, 4))
    assert all(part.is_contiguous() for part in feature_maps(model, images).values())

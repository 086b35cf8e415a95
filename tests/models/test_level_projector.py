import pytest
import torch
import torch.nn.functional as F

from ccop_mm.models.level_projector import LevelProjector


@pytest.fixture
def pyramid(generator):
    """Levels from coarse to fine, as mmdet's YOLOV3Neck returns them."""
    return [torch.randn(2, channels, side, side, generator=generator) for channels, side in ((6, 2), (5, 4), (3, 8))]


def test_equal_channels_are_selected_without_parameters(pyramid):
    projector = LevelProjector((2, 1), (4, 4), 4)
    assert not projector.state_dict()
    assert [id(level) for level in projector(pyramid)] == [id(pyramid[2]), id(pyramid[1])]


def test_unequal_channels_are_projected(pyramid):
    projector = LevelProjector((2, 0), (3, 6), 7)
    for level, conv, source in zip(projector(pyramid), projector.convs, (pyramid[2], pyramid[0]), strict=True):
        torch.testing.assert_close(
            level, F.linear(source.movedim(1, -1), conv.weight[:, :, 0, 0], conv.bias).movedim(-1, 1)
        )


def test_gradients_reach_the_selected_levels_only(pyramid):
    pyramid = [level.requires_grad_() for level in pyramid]
    projector = LevelProjector((2, 0), (3, 6), 7)
    sum(level.sum() for level in projector(pyramid)).backward()
    assert [level.grad is not None for level in pyramid] == [True, False, True]
    assert all(value.grad is not None for value in projector.parameters())

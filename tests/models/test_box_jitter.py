import pytest
import torch
from mmselfsup.registry import TRANSFORMS
from scipy.stats import ks_2samp

from ccop_mm.models import SCSBoxJitter, box_jitter
from ccop_mm.utils import boxes as box_ops


def random_boxes(count, generator):
    top_left = torch.rand(count, 2, generator=generator) * 120
    return torch.cat([top_left, top_left + torch.rand(count, 2, generator=generator) * 90 + 12], dim=1)


@pytest.mark.parametrize('anchor', box_ops.ANCHORS)
def test_iou_of_the_noise_is_the_iou_of_the_boxes(anchor, generator):
    boxes = random_boxes(500, generator).double()
    noise = torch.rand(500, 4, generator=generator, dtype=torch.float64) * 2 - 1
    expected = box_ops.aligned_iou(box_ops.jitter(boxes, noise, anchor), boxes)
    torch.testing.assert_close(box_jitter.noise_iou(noise, anchor), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize('anchor', box_ops.ANCHORS)
@pytest.mark.parametrize('progress', [0.0, 0.5, 1.0])
def test_noise_has_the_distribution_of_rejection_sampling(anchor, progress, generator):
    zeta, beta = box_jitter.interpolate((0.3, 1.0), progress), box_jitter.interpolate((0.8, 0.3), progress)
    noise, acceptance = box_jitter.sample_valid_noise(50_000, zeta, beta, anchor=anchor, generator=generator)
    plain = (torch.rand(2_000_000, 4, generator=generator) * 2 - 1) * zeta
    kept = plain[box_jitter.noise_iou(plain, anchor) >= beta]
    assert noise.shape == (50_000, 4)
    assert box_jitter.noise_iou(noise, anchor).min() >= beta
    assert acceptance == pytest.approx(len(kept) / len(plain), rel=0.05)
    for coordinate in range(4):
        assert ks_2samp(noise[:, coordinate].numpy(), kept[:, coordinate].numpy()).pvalue > 1e-4
    # The IoU floor makes the coordinates dependent.
    torch.testing.assert_close(noise.T.cov(), kept.T.cov(), rtol=0, atol=0.02 * zeta**2)


def test_separate_range_for_width_and_height(generator):
    noise, _ = box_jitter.sample_valid_noise(20_000, 0.1, 0.5, zeta_wh=0.6, generator=generator)
    assert noise[:, :2].abs().max() <= 0.1
    assert 0.55 < noise[:, 2:].abs().max() <= 0.6


def test_values_stay_between_those_of_start_and_end():
    jitter = SCSBoxJitter(noise=(0.3, 1.0), min_iou=(0.8, 0.3), noise_wh=(0.2, 0.7))
    boxes = torch.tensor([[10.0, 10, 60, 60]])
    for progress, zeta, beta in [(1.6, 1.0, 0.3), (-0.5, 0.3, 0.8), (1e9, 1.0, 0.3)]:
        jitter.progress = progress
        assert (jitter.zeta, jitter.beta) == (pytest.approx(zeta), pytest.approx(beta))
        candidates, valid = jitter.jitter(boxes, (224, 224))
        assert valid.all() and box_ops.aligned_iou(candidates, boxes[:, None]).min() >= beta - 1e-5


def test_candidates_are_valid_inside_and_seeded(generator):
    jitter = SCSBoxJitter()
    boxes = random_boxes(60, generator)
    for progress, zeta, beta in [(0.0, 0.3, 0.8), (0.5, 0.65, 0.55), (1.0, 1.0, 0.3)]:
        jitter.progress = progress
        assert (jitter.zeta, jitter.beta) == (pytest.approx(zeta), pytest.approx(beta))
        inside = box_ops.clip(boxes, (224, 224))
        candidates, valid = jitter.jitter(inside, (224, 224), torch.Generator().manual_seed(3))
        again, _ = jitter.jitter(inside, (224, 224), torch.Generator().manual_seed(3))
        assert candidates.shape == (60, 10, 4)
        assert valid.all()
        assert torch.equal(candidates, again)
        assert box_ops.aligned_iou(candidates, inside[:, None]).min() >= beta - 1e-5
        assert candidates.min() >= 0
        assert candidates.max() <= 224
        assert candidates.unique(dim=1).shape == candidates.shape, 'candidates of a box are independent samples'


def test_plain_samples_are_masked_and_the_original_is_last(generator):
    jitter = SCSBoxJitter(
        noise=(0.075, 0.3), noise_wh=(0.175, 0.7), anchor='center', redraw=False, include_original=True
    )
    jitter.progress = 1.0
    boxes = box_ops.clip(random_boxes(200, generator), (224, 224))
    candidates, valid = jitter.jitter(boxes, (224, 224), generator)
    assert candidates.shape == (200, 11, 4)
    assert torch.equal(candidates[:, 10], boxes)
    assert valid[:, 10].all()
    assert torch.equal(valid[:, :10], box_ops.aligned_iou(candidates[:, :10], boxes[:, None]) >= 0.3)
    assert 0 < valid[:, :10].sum() < valid[:, :10].numel()


@pytest.mark.parametrize('redraw', [True, False])
def test_box_without_area_or_outside_the_view_has_no_candidate(redraw):
    boxes = torch.tensor([[5.0, 5, 5, 20], [300.0, 10, 340, 40], [10.0, 10, 60, 60]])
    _, valid = SCSBoxJitter(redraw=redraw, include_original=True).jitter(boxes, (224, 224))
    assert not valid[:2].any()
    assert valid[2].any()


def test_no_boxes():
    candidates, valid = SCSBoxJitter().jitter(torch.zeros(0, 4), (224, 224))
    assert candidates.shape == (0, 10, 4)
    assert valid.shape == (0, 10)


def test_as_a_transform_built_by_name(generator):
    jitter = TRANSFORMS.build(dict(type='SCSBoxJitter', num_jitter=3))
    boxes = random_boxes(4, generator)
    results = jitter(dict(img=torch.zeros(224, 224, 3).numpy(), proposals=boxes.numpy()))
    assert results['jittered_boxes'].shape == (4, 3, 4)
    assert results['jittered_valid'].shape == (4, 3)


@pytest.mark.parametrize(
    'arguments, message',
    [(dict(anchor='middle'), 'anchor'), (dict(num_jitter=0), 'num_jitter'), (dict(min_iou=(0.8, 1.0)), 'min_iou')],
)
def test_invalid_arguments_are_rejected(arguments, message):
    with pytest.raises(ValueError, match=message):
        SCSBoxJitter(**arguments)

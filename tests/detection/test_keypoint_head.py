import math

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.structures import InstanceData
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.roi_heads import keypointrcnn_loss

from ccop_mm.detection import KeypointHead, from_torchvision


def build_pair(num_keypoints, in_channels, width, num_convs):
    """Builds our keypoint head and torchvision's, with the same weights."""
    theirs = torch.nn.Sequential(
        KeypointRCNNHeads(in_channels, (width,) * num_convs), KeypointRCNNPredictor(width, num_keypoints)
    )
    names = ('roi_heads.keypoint_head.', 'roi_heads.keypoint_predictor.')
    state = {names[int(key[0])] + key[2:]: value for key, value in theirs.state_dict().items()}
    ours = KeypointHead(num_keypoints, in_channels, num_convs, width)
    ours.load_state_dict({key.removeprefix('roi_head.keypoint_head.'): v for key, v in from_torchvision(state).items()})
    return ours, theirs


@pytest.mark.parametrize('size', [(17, 16, 32, 8), (5, 8, 8, 2)], ids=['eight', 'two'])
def test_forward_matches_torchvision(size, generator):
    ours, theirs = build_pair(*size)
    x = torch.randn(3, size[1], 14, 14, generator=generator)
    assert ours(x).shape == (3, size[0], 56, 56)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


def test_initialization_matches_torchvision():
    torch.manual_seed(0)
    ours, theirs = KeypointHead(17, 64, 3, 128), build_pair(17, 64, 128, 3)[1]
    ours.init_weights()
    pairs = list(zip(ours.parameters(), theirs.parameters(), strict=True))
    assert [a.shape for a, _ in pairs] == [b.shape for _, b in pairs]
    for a, b in pairs:
        if a.dim() == 1:
            assert not a.any() and not b.any()
        else:
            assert a.std().item() == pytest.approx(b.std().item(), rel=0.05)


def make_batch(generator, num_rois=20, num_keypoints=6):
    rois = torch.rand(num_rois, 4, generator=generator) * 50
    rois[:, 2:] += rois[:, :2] + 1
    keypoints = torch.rand(num_rois, num_keypoints, 2, generator=generator) * 100
    visible = (torch.rand(num_rois, num_keypoints, generator=generator) < 0.6).float()
    logits = torch.randn(num_rois, num_keypoints, 56, 56, generator=generator, dtype=torch.float64)
    return logits, keypoints, visible, rois


def test_loss_and_gradient_match_torchvision(generator):
    logits, keypoints, visible, rois = make_batch(generator)
    results = []
    head = KeypointHead(6, 8, 1, 8)
    cells, valid = head.get_targets(keypoints, visible, rois, 14)
    ground_truth = torch.cat((keypoints, visible[..., None]), dim=-1)
    for loss in (
        lambda x: head.loss(x, cells, valid, 1)['loss_keypoint'],
        lambda x: keypointrcnn_loss(x, [rois], [ground_truth], [torch.arange(20)]),
    ):
        x = logits.clone().requires_grad_()
        value = loss(x)
        value.backward()
        results.append((value.detach(), x.grad))
    assert valid.any()
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize('normalizer', ['visible', 7.5])
def test_loss_matches_a_loop_over_keypoints(generator, normalizer):
    logits, keypoints, visible, rois = make_batch(generator, 30, 3)
    head = KeypointHead(3, 8, 1, 8, normalizer=normalizer)
    cells, valid = head.get_targets(keypoints, visible, rois, 14)
    total, count = 0.0, 0
    for roi in range(30):
        for keypoint in range(3):
            if valid[roi, keypoint]:
                values = logits[roi, keypoint].flatten().tolist()
                total += math.log(sum(map(math.exp, values))) - values[cells[roi, keypoint]]
                count += 1
    expected = total / (count if normalizer == 'visible' else 7.5 * 2)
    assert count and head.loss(logits, cells, valid, 2)['loss_keypoint'].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize('num_rois', [0, 2])
def test_loss_without_visible_keypoints_is_0_and_all_parameters_get_a_gradient(generator, num_rois):
    head = KeypointHead(4, 8, 2, 8)
    logits = head(torch.randn(num_rois, 8, 14, 14, generator=generator))
    zeros = torch.zeros(num_rois, 4)
    loss = head.loss(logits, zeros.long(), zeros.bool(), 1)['loss_keypoint']
    loss.backward()
    assert loss.item() == 0
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in head.parameters())


def test_predictions_are_assigned_to_their_images(generator):
    logits, _, _, rois = make_batch(generator, 5)
    results = [InstanceData(bboxes=rois[:2]), InstanceData(bboxes=rois[:0]), InstanceData(bboxes=rois[2:])]
    head = KeypointHead(6, 8, 1, 8)
    head.predict_by_feat(logits, results)
    together = head.predict_by_feat(logits, [InstanceData(bboxes=rois)])[0]
    assert [result.keypoints.shape for result in results] == [(2, 6, 2), (0, 6, 2), (3, 6, 2)]
    assert torch.equal(torch.cat([result.keypoints for result in results]), together.keypoints)
    assert torch.equal(torch.cat([result.keypoint_scores for result in results]), together.keypoint_scores)


def test_builds_from_a_config():
    head = MODELS.build(
        dict(
            type='mmdet.KeypointHead',
            num_keypoints=3,
            in_channels=8,
            num_convs=1,
            conv_out_channels=8,
            norm_cfg=dict(type='GN', num_groups=2),
            loss_keypoint=dict(type='mmdet.CrossEntropyLoss', loss_weight=4.0),
        )
    )
    assert isinstance(head.convs[0].norm, torch.nn.GroupNorm)
    valid = torch.zeros(1, 3, dtype=torch.bool)
    valid[0, 0] = True
    loss = head.loss(torch.zeros(1, 3, 56, 56), torch.zeros(1, 3).long(), valid, 1)['loss_keypoint']
    assert loss.item() == pytest.approx(4 * math.log(56 * 56), rel=1e-5)


@pytest.mark.parametrize('normalizer', ['all', 0, -1, None])
def test_invalid_normalizer_raises(normalizer):
    with pytest.raises(ValueError, match=f'normalizer.*{normalizer!r}'):
        KeypointHead(3, normalizer=normalizer)

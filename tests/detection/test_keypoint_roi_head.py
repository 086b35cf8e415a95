import copy

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData

from ccop_mm.utils.errors import InputError

HEIGHT, WIDTH, NUM_KEYPOINTS = 64, 96, 4


def build_roi_head(with_mask=False, num_classes=2, **kwargs):
    """Builds a small head for two feature levels with 8 channels."""

    def roi_extractor(size):
        layer = dict(type='RoIAlign', output_size=size, sampling_ratio=0)
        return dict(type='SingleRoIExtractor', roi_layer=layer, out_channels=8, featmap_strides=[4, 8])

    config = dict(
        type='KeypointRoIHead',
        bbox_roi_extractor=roi_extractor(7),
        bbox_head=dict(
            type='Shared2FCBBoxHead', in_channels=8, fc_out_channels=16, roi_feat_size=7, num_classes=num_classes
        ),
        keypoint_roi_extractor=roi_extractor(14),
        keypoint_head=dict(
            type='KeypointHead', num_keypoints=NUM_KEYPOINTS, in_channels=8, num_convs=2, conv_out_channels=8, **kwargs
        ),
        train_cfg=dict(
            assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.5, min_pos_iou=0.5),
            sampler=dict(type='RandomSampler', num=16, pos_fraction=0.25, neg_pos_ub=-1, add_gt_as_proposals=True),
            pos_weight=-1,
            mask_size=28,
        ),
        test_cfg=dict(score_thr=0.0, nms=dict(type='nms', iou_threshold=0.5), max_per_img=6, mask_thr_binary=0.5),
    )
    if with_mask:
        config['mask_roi_extractor'] = roi_extractor(14)
        config['mask_head'] = dict(
            type='FCNMaskHead', num_convs=1, in_channels=8, conv_out_channels=8, num_classes=num_classes
        )
    torch.manual_seed(0)
    head = MODELS.build(ConfigDict(config))
    head.init_weights()
    return head


def make_features(batch, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    sizes = [(HEIGHT // stride, WIDTH // stride) for stride in (4, 8)]
    return tuple(torch.randn(batch, 8, *size, generator=generator).to(dtype).requires_grad_() for size in sizes)


def make_proposals(batch, count=30):
    generator = torch.Generator().manual_seed(2)
    corner = torch.rand(batch, count, 2, generator=generator) * torch.tensor([50.0, 30])
    boxes = torch.cat((corner, corner + 10 + torch.rand(batch, count, 2, generator=generator) * 30), dim=-1)
    scores, labels = torch.ones(count), torch.zeros(count).long()
    return [InstanceData(bboxes=bboxes, scores=scores.clone(), labels=labels.clone()) for bboxes in boxes]


def make_sample(boxes=(), keypoints=None, visible=None, crowd=()):
    """Returns a data sample; the default keypoints of an object are 2 pixels inside the corners of its box."""
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    if keypoints is None:
        low, high = boxes[:, :2] + 2, boxes[:, 2:] - 2
        xs, ys = torch.stack((low[:, 0], high[:, 0]), 1), torch.stack((low[:, 1], high[:, 1]), 1)
        keypoints = torch.stack((xs[:, [0, 1, 0, 1]], ys[:, [0, 0, 1, 1]]), dim=-1)
    if visible is None:
        visible = torch.ones(len(boxes), NUM_KEYPOINTS)
    ignored = torch.tensor(crowd, dtype=torch.float32).reshape(-1, 4)
    meta = dict(img_shape=(HEIGHT, WIDTH), ori_shape=(2 * HEIGHT, 3 * WIDTH), scale_factor=(1 / 3, 0.5), img_id=0)
    data = DetDataSample(metainfo=meta)
    data.gt_instances = InstanceData(
        bboxes=boxes, labels=torch.zeros(len(boxes)).long(), keypoints=keypoints, keypoints_visible=visible
    )
    data.ignored_instances = InstanceData(bboxes=ignored, labels=torch.zeros(len(ignored)).long())
    return data


BOX = [10.0, 8, 50, 56]
EMPTY_KEYPOINTS = dict(keypoints=torch.zeros(0, 0, 2), visible=torch.zeros(0, 0))
CASES = {
    'objects': [make_sample([BOX]), make_sample([BOX, [40, 10, 90, 60]])],
    'no objects': [make_sample(), make_sample()],
    'no objects, number of keypoints unknown': [make_sample(**EMPTY_KEYPOINTS), make_sample([BOX])],
    'objects without visible keypoints': [
        make_sample([BOX], visible=torch.zeros(1, 4)),
        make_sample([BOX], visible=torch.zeros(1, 4)),
    ],
    'objects and crowds': [make_sample([BOX], crowd=[[0, 0, 90, 60]]), make_sample(crowd=[[0, 0, 90, 60]])],
    'box outside the image': [make_sample([[-30, -20, 20, 20]]), make_sample([[200, 200, 260, 240]])],
    'keypoints outside the image': [make_sample([BOX], keypoints=torch.full((1, 4, 2), 1e4)), make_sample([BOX])],
}


@pytest.mark.parametrize('name', CASES)
def test_losses_are_finite_and_all_parameters_get_a_gradient(name):
    head, x = build_roi_head(), make_features(2)
    losses = head.loss(x, make_proposals(2), copy.deepcopy(CASES[name]))
    assert set(losses) == {'loss_cls', 'acc', 'loss_bbox', 'loss_keypoint'}
    assert all(torch.isfinite(value).all() for value in losses.values())
    sum(value for key, value in losses.items() if 'loss' in key).backward()
    for parameter in head.parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all()
    has_targets = name not in ('no objects', 'objects without visible keypoints')
    trained = any(parameter.grad.any() for parameter in head.keypoint_head.parameters())
    assert (losses['loss_keypoint'].item() > 0) == trained == has_targets


def test_skipping_rois_without_labeled_keypoints_does_not_change_the_loss():
    head, x = build_roi_head(), make_features(1)
    data = make_sample([BOX, [40, 10, 90, 60]], visible=torch.tensor([[1.0, 0, 1, 1], [0, 0, 0, 0]]))
    calls = []
    original = head.keypoint_loss
    head.keypoint_loss = lambda *args: calls.append(args) or original(*args)
    loss = head.loss(x, make_proposals(1), [data])['loss_keypoint']
    _, (sampled,), _ = calls[0]
    rois = sampled.pos_priors
    assert len(rois) > 1 and set(sampled.pos_assigned_gt_inds.tolist()) == {0, 1}
    logits = head._keypoint_forward(x, torch.cat((torch.zeros(len(rois), 1), rois), dim=1)).flatten(2)
    total, count = 0, 0
    for row, roi, owner in zip(logits, rois, sampled.pos_assigned_gt_inds, strict=True):
        for keypoint in range(NUM_KEYPOINTS):
            point = data.gt_instances.keypoints[owner, keypoint]
            cell = ((point - roi[:2]) / (roi[2:] - roi[:2]) * 56).floor().long()
            if data.gt_instances.keypoints_visible[owner, keypoint] and (cell >= 0).all() and (cell < 56).all():
                total = total - row[keypoint].log_softmax(0)[cell[1] * 56 + cell[0]]
                count += 1
    torch.testing.assert_close(loss, total / count)


def test_predictions_have_keypoints_inside_their_boxes_and_are_rescaled():
    head, x = build_roi_head(), make_features(2)
    unscaled = head.predict(x, make_proposals(2), [make_sample(), make_sample()], rescale=False)
    rescaled = head.predict(x, make_proposals(2), [make_sample(), make_sample()], rescale=True)
    for a, b in zip(unscaled, rescaled, strict=True):
        assert len(a) == 6
        assert a.keypoints.shape == (6, NUM_KEYPOINTS, 2) and a.keypoint_scores.shape == (6, NUM_KEYPOINTS)
        torch.testing.assert_close(b.keypoints, a.keypoints * torch.tensor([3.0, 2.0]))
        torch.testing.assert_close(b.bboxes, a.bboxes * torch.tensor([3.0, 2, 3, 2]))
        assert torch.equal(a.keypoint_scores, b.keypoint_scores)
        corner, opposite = b.bboxes[:, None, :2], b.bboxes[:, None, 2:]
        assert ((b.keypoints >= corner - 0.01) & (b.keypoints <= opposite + 0.01)).all()


def test_predictions_without_detections_have_empty_fields():
    head, x = build_roi_head(), make_features(2)
    head.test_cfg['score_thr'] = 1.1
    for proposals in (make_proposals(2), [instances[:0] for instances in make_proposals(2)]):
        for result in head.predict(x, proposals, [make_sample(), make_sample()], rescale=True):
            assert result.keypoints.shape == (0, NUM_KEYPOINTS, 2)
            assert result.keypoint_scores.shape == (0, NUM_KEYPOINTS)


def has_gradient(module):
    return any(parameter.grad is not None and parameter.grad.any() for parameter in module.parameters())


def test_mask_and_keypoint_branches_train_and_predict_together():
    head, x = build_roi_head(with_mask=True), make_features(1)
    data = make_sample([BOX])
    data.gt_instances.masks = BitmapMasks([torch.ones(HEIGHT, WIDTH).numpy().astype('uint8')], HEIGHT, WIDTH)
    losses = head.loss(x, make_proposals(1), [data])
    assert set(losses) == {'loss_cls', 'acc', 'loss_bbox', 'loss_mask', 'loss_keypoint'}
    for name, branch in (('loss_mask', head.mask_head), ('loss_keypoint', head.keypoint_head)):
        head.zero_grad()
        losses[name].backward(retain_graph=True)
        trained = {part for part in ('mask_head', 'keypoint_head') if has_gradient(head.get_submodule(part))}
        assert has_gradient(branch) and len(trained) == 1, name
    unscaled = head.predict(x, make_proposals(1), [make_sample()], rescale=False)[0]
    (result,) = head.predict(x, make_proposals(1), [make_sample()], rescale=True)
    assert result.masks.shape == (6, 2 * HEIGHT, 3 * WIDTH)
    torch.testing.assert_close(result.bboxes, unscaled.bboxes * torch.tensor([3.0, 2, 3, 2]))
    torch.testing.assert_close(result.keypoints, unscaled.keypoints * torch.tensor([3.0, 2.0]))


def test_forward_returns_raw_outputs():
    head = build_roi_head()
    scores, deltas, logits = head.forward(make_features(2), make_proposals(2), [make_sample(), make_sample()])
    assert scores.shape == (60, 3) and deltas.shape == (60, 8) and logits.shape == (60, NUM_KEYPOINTS, 56, 56)


def test_bfloat16_features_do_not_round_the_rois():
    # Under autocast the FPN returns bfloat16, whose resolution above 64 is half a pixel.
    head = build_roi_head()
    x = tuple(level.detach().bfloat16().float() for level in make_features(1))
    expected = head.predict(x, make_proposals(1), [make_sample()])[0]
    (result,) = head.predict(tuple(level.bfloat16() for level in x), make_proposals(1), [make_sample()])
    torch.testing.assert_close(result.keypoints, expected.keypoints)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        losses = head.loss(tuple(level.bfloat16() for level in x), make_proposals(1), [make_sample([BOX])])
    assert torch.isfinite(losses['loss_keypoint']) and losses['loss_keypoint'].dtype == torch.float32


def test_mismatched_ground_truth_raises():
    head, x = build_roi_head(), make_features(1)
    data = make_sample([BOX], keypoints=torch.zeros(1, 17, 2), visible=torch.zeros(1, 17))
    with pytest.raises(InputError, match=r'\b17\b.*num_keypoints.*\b4\b'):
        head.loss(x, make_proposals(1), [data])
    data = make_sample([BOX])
    data.gt_instances = InstanceData(bboxes=HorizontalBoxes([BOX]).tensor, labels=torch.zeros(1).long())
    with pytest.raises(InputError, match='CocoKeypointDataset'):
        head.loss(x, make_proposals(1), [data])

from pathlib import Path

import pytest
import torch
import torchvision
from mmcv.ops import nms, roi_align
from mmdet.registry import MODELS, TASK_UTILS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from torchvision.models.detection import keypointrcnn_resnet50_fpn
from torchvision.models.detection.anchor_utils import AnchorGenerator

from ccop_mm.detection import from_torchvision
from ccop_mm.utils.errors import InputError

CONFIG = Path(__file__).resolve().parents[2] / 'configs/transfer/keypoint_rcnn/keypoint-rcnn_r50-fpn_torchvision.py'
HEIGHT, WIDTH = 192, 256  # divisible by 64, otherwise torchvision's coarsest anchors have another stride


def reference_nms(boxes, scores, iou_threshold):
    """Greedy non-maximum suppression."""
    order = scores.argsort(descending=True, stable=True)
    keep = []
    while len(order):
        best, order = order[0], order[1:]
        keep.append(best)
        low = torch.maximum(boxes[best, :2], boxes[order, :2])
        high = torch.minimum(boxes[best, 2:], boxes[order, 2:])
        shared = (high - low).clamp(min=0).prod(1)
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        order = order[shared / (areas[best] + areas[order] - shared) <= iou_threshold]
    return torch.stack(keep) if keep else torch.zeros(0, dtype=torch.long)


def reference_roi_align(features, rois, size, scale, sampling_ratio, aligned):
    """RoIAlign by its definition (Mask R-CNN, Sec. 3) for ``aligned=False``."""
    assert not aligned
    channels, height, width = features.shape[1:]
    out = features.new_zeros(len(rois), channels, *size)
    for index, roi in enumerate(rois):
        x1, y1, x2, y2 = (roi[1:] * scale).tolist()
        steps = []
        for start, end, cells, limit in ((y1, y2, size[0], height), (x1, x2, size[1], width)):
            bin_size = max(end - start, 1.0) / cells
            share = (torch.arange(cells * sampling_ratio) + 0.5) / sampling_ratio
            places = start + share * bin_size
            inside = (places >= -1) & (places <= limit)
            places = places.clamp(0, limit - 1)
            low = places.floor().long()
            high = (low + 1).clamp(max=limit - 1)
            weights = torch.zeros(len(places), limit)
            rows = torch.arange(len(places))
            weights[rows, low] += (1 - (places - low)) * inside
            weights[rows, high] += (places - low) * inside
            steps.append(weights.view(cells, sampling_ratio, limit).mean(1))
        out[index] = steps[0] @ features[int(roi[0])] @ steps[1].T
    return out


@pytest.fixture
def torchvision_ops(monkeypatch):
    """Replaces torchvision's compiled ops with reference ones if its wheel does not match the PyTorch build."""
    try:
        torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    except (RuntimeError, NotImplementedError):

        def roi_align(features, rois, output_size, spatial_scale=1.0, sampling_ratio=-1, aligned=False):
            return reference_roi_align(features, rois, output_size, spatial_scale, sampling_ratio, aligned)

        monkeypatch.setattr(torchvision.ops.boxes, '_assert_has_ops', lambda: None, raising=False)
        monkeypatch.setattr(torchvision.ops.boxes, 'nms', reference_nms)
        monkeypatch.setattr(torchvision.ops.poolers, 'roi_align', roi_align)


def randomize_weights(model, image):
    """Sets weights with which boxes of many sizes and several categories are detected, with distinct scores."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.8, 1.2)
            torch.nn.init.uniform_(module.weight, 0.3, 0.6)
            torch.nn.init.normal_(module.bias, 0, 0.1)
    predictor = model.roi_heads.box_predictor
    standardize_outputs(model, image, {model.rpn.head.cls_logits: 2, model.rpn.head.bbox_pred: 0.4})
    standardize_outputs(model, image, {predictor.cls_score: 2, predictor.bbox_pred: 0.5})


def standardize_outputs(model, image, layers):
    """Scales layers so that on one image each output channel has mean 0 and the given standard deviation."""
    outputs = {layer: [] for layer in layers}
    handles = [layer.register_forward_hook(lambda layer, _, output: outputs[layer].append(output)) for layer in layers]
    with torch.no_grad():
        model([image])
        for layer, handle in zip(layers, handles, strict=True):
            handle.remove()
            values = torch.cat([output.transpose(0, 1).flatten(1) for output in outputs[layer]], dim=1)  # (C, N)
            factor = layers[layer] / values.std(1)
            layer.weight.mul_(factor.view(-1, *[1] * (layer.weight.dim() - 1)))
            layer.bias.sub_(values.mean(1)).mul_(factor)


def build_detector(num_classes, num_keypoints):
    cfg = Config.fromfile(CONFIG)
    cfg.merge_from_dict(
        {
            'model.backbone.norm_cfg.eps': 1e-5,  # default of BatchNorm2d; the published weights require eps 0
            'model.roi_head.bbox_head.num_classes': num_classes,
            'model.roi_head.keypoint_head.num_keypoints': num_keypoints,
        }
    )
    return MODELS.build(cfg.model).eval()


def detect(model, image):
    """Runs a detector on an RGB image (3, H, W) in [0, 1], converted to mmdet's BGR in [0, 255]."""
    meta = dict(img_shape=(HEIGHT, WIDTH), ori_shape=(HEIGHT, WIDTH), scale_factor=(1.0, 1.0))
    data = dict(inputs=[image.flip(0) * 255], data_samples=[DetDataSample(metainfo=meta)])
    data = model.data_preprocessor(data, False)
    with torch.no_grad():
        (result,) = model.predict(data['inputs'], data['data_samples'])
    return result.pred_instances


@pytest.mark.slow
def test_converted_model_matches_torchvision(torchvision_ops):
    num_classes, num_keypoints, detections, proposals = 3, 7, 12, 150
    theirs = keypointrcnn_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=num_classes + 1,
        num_keypoints=num_keypoints,
        min_size=HEIGHT,
        max_size=WIDTH,
        box_detections_per_img=detections,
        rpn_post_nms_top_n_test=proposals,
    )
    theirs.eval()
    image = torch.rand(3, HEIGHT // 8, WIDTH // 8, generator=torch.Generator().manual_seed(3))
    image = torch.nn.functional.interpolate(image[None], size=(HEIGHT, WIDTH), mode='bicubic')[0].clamp(0, 1)
    randomize_weights(theirs, image)
    ours = build_detector(num_classes, num_keypoints)
    ours.roi_head.test_cfg.max_per_img = detections
    ours.rpn_head.test_cfg.max_per_img = proposals
    ours.load_state_dict(from_torchvision(theirs.state_dict()), strict=True)
    with torch.no_grad():
        (expected,) = theirs([image])
    result = detect(ours, image)
    # The comparison needs distinct scores, several categories and several sizes.
    assert len(expected['scores']) == detections and expected['scores'].diff().abs().min() > 1e-5
    areas = (expected['boxes'][:, 2:] - expected['boxes'][:, :2]).prod(1)
    assert len(expected['labels'].unique()) > 1 and areas.max() > 16 * areas.min()
    assert torch.equal(result.labels + 1, expected['labels'])
    torch.testing.assert_close(result.scores, expected['scores'], rtol=0, atol=1e-3)
    torch.testing.assert_close(result.bboxes, expected['boxes'], rtol=0, atol=1e-3)
    torch.testing.assert_close(result.keypoints, expected['keypoints'][..., :2], rtol=0, atol=1e-3)


def test_anchors_match_torchvision():
    ours = TASK_UTILS.build(
        dict(type='RoundedAnchorGenerator', scales=[8], ratios=[0.5, 1.0, 2.0], strides=[4, 8, 16, 32, 64])
    )
    theirs = AnchorGenerator(tuple((size,) for size in (32, 64, 128, 256, 512)), ((0.5, 1.0, 2.0),) * 5)
    for a, b in zip(ours.base_anchors, theirs.cell_anchors, strict=True):
        assert torch.equal(a, b)


def test_reference_ops_match_mmcv():
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(40, 2, generator=generator) * 40
    boxes = torch.cat((corner, corner + torch.rand(40, 2, generator=generator) * 30), dim=1)
    scores = torch.rand(40, generator=generator)
    assert torch.equal(reference_nms(boxes, scores, 0.5), nms(boxes, scores, 0.5)[1])
    rois = torch.cat((torch.randint(2, (40, 1), generator=generator), boxes), dim=1)
    features = torch.randn(2, 3, 16, 18, generator=generator)
    expected = roi_align(features, rois, (7, 5), 0.25, 2, 'avg', False)
    torch.testing.assert_close(
        reference_roi_align(features, rois, (7, 5), 0.25, 2, False), expected, rtol=1e-4, atol=1e-5
    )


def test_unknown_parameter_raises():
    with pytest.raises(InputError, match='roi_heads.mask_head.0.0.weight'):
        from_torchvision({'roi_heads.mask_head.0.0.weight': torch.zeros(1)})

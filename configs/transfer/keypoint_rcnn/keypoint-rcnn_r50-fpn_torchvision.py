# torchvision's keypointrcnn_resnet50_fpn, for testing with weights converted by ccop_mm.detection.from_torchvision (see
# docs/keypoint_rcnn.md).
_base_ = ['../../_base_/keypoint-rcnn_r50_fpn.py', '../../_base_/coco_person_keypoints.py']

roi_layer = dict(type='RoIAlign', sampling_ratio=2, aligned=False)
model = dict(
    # torchvision sets eps to 0 in the FrozenBatchNorm2d layers when it loads its published weights.
    backbone=dict(norm_cfg=dict(type='BN', requires_grad=False, eps=0.0), init_cfg=None),
    rpn_head=dict(anchor_generator=dict(type='RoundedAnchorGenerator')),
    roi_head=dict(
        bbox_roi_extractor=dict(roi_layer=dict(output_size=7, **roi_layer)),
        keypoint_roi_extractor=dict(roi_layer=dict(output_size=14, **roi_layer)),
    ),
)
test_cfg = dict(type='TestLoop')
val_dataloader = val_evaluator = train_dataloader = None

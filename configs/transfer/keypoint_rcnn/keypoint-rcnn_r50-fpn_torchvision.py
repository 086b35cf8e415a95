# torchvision's keypointrcnn_resnet50_fpn to the last detail that its weights know of; for testing with converted weights
# (ccop_mm.detection.from_torchvision), see docs/keypoint_rcnn.md. Its FrozenBatchNorm of the published weights has eps 0.
_base_ = ['../../_base_/keypoint-rcnn_r50_fpn.py', '../../_base_/coco_person_keypoints.py']

roi_layer = dict(type='RoIAlign', sampling_ratio=2, aligned=False)
model = dict(
    backbone=dict(norm_cfg=dict(type='BN', requires_grad=False, eps=0.0), init_cfg=None),
    rpn_head=dict(anchor_generator=dict(type='RoundedAnchorGenerator')),
    roi_head=dict(
        bbox_roi_extractor=dict(roi_layer=dict(output_size=7, **roi_layer)),
        keypoint_roi_extractor=dict(roi_layer=dict(output_size=14, **roi_layer)),
    ),
)
test_cfg = dict(type='TestLoop')
val_dataloader = val_evaluator = train_dataloader = None

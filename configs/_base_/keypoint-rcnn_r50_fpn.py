# Keypoint R-CNN R50-FPN for COCO's persons, from ImageNet weights: Detectron2's keypoint_rcnn_R_50_FPN in mmdet's terms.
# For another skeleton or other categories see docs/keypoint_rcnn.md.
_base_ = ['mmdet::_base_/models/faster-rcnn_r50_fpn.py', 'mmdet::_base_/default_runtime.py']

custom_imports = dict(imports=['ccop_mm.detection'], allow_failed_imports=False)

model = dict(
    type='KeypointRCNN',
    roi_head=dict(
        type='KeypointRoIHead',
        # Detectron2's ROI_BOX_HEAD.SMOOTH_L1_BETA: keypoint AP falls with plain L1, mmdet's.
        bbox_head=dict(num_classes=1, loss_bbox=dict(_delete_=True, type='SmoothL1Loss', beta=0.5)),
        keypoint_roi_extractor=dict(
            type='SingleRoIExtractor',
            roi_layer=dict(type='RoIAlign', output_size=14, sampling_ratio=0),
            out_channels=256,
            featmap_strides=[4, 8, 16, 32],
        ),
        # normalizer: Detectron2's NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS is on by default.
        keypoint_head=dict(type='KeypointHead', num_keypoints=17, normalizer='visible'),
    ),
    # Detectron2's RPN.POST_NMS_TOPK_TRAIN: box AP falls with 1,000, mmdet's.
    train_cfg=dict(rpn_proposal=dict(max_per_img=1500)),
)

visualizer = dict(type='KeypointLocalVisualizer')

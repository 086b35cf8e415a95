# Keypoint R-CNN R50-FPN with the settings of Detectron2's keypoint_rcnn_R_50_FPN, initialized from ImageNet weights. See
# docs/keypoint_rcnn.md for other skeletons and categories.
_base_ = ['mmdet::_base_/models/faster-rcnn_r50_fpn.py', 'mmdet::_base_/default_runtime.py']

custom_imports = dict(imports=['ccop_mm.detection'], allow_failed_imports=False)

model = dict(
    type='KeypointRCNN',
    roi_head=dict(
        type='KeypointRoIHead',
        # Detectron2's ROI_BOX_HEAD.SMOOTH_L1_BETA; its config reports lower keypoint AP with L1, mmdet's default.
        bbox_head=dict(num_classes=1, loss_bbox=dict(_delete_=True, type='SmoothL1Loss', beta=0.5)),
        keypoint_roi_extractor=dict(
            type='SingleRoIExtractor',
            roi_layer=dict(type='RoIAlign', output_size=14, sampling_ratio=0),
            out_channels=256,
            featmap_strides=[4, 8, 16, 32],
        ),
        # 'visible' corresponds to Detectron2's NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS, its default.
        keypoint_head=dict(type='KeypointHead', num_keypoints=17, normalizer='visible'),
    ),
    # Detectron2's RPN.POST_NMS_TOPK_TRAIN; its config reports lower box AP with 1,000, mmdet's default.
    train_cfg=dict(rpn_proposal=dict(max_per_img=1500)),
)

visualizer = dict(type='KeypointLocalVisualizer')

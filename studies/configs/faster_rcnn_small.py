# Faster R-CNN with the backbone and FPN of ccop_small.py, heads with a quarter of mmdet's channels, images of 128 px.
_base_ = ['./faster_rcnn_full.py']

model = dict(
    backbone=dict(depth=18, base_channels=32),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=64),
    rpn_head=dict(in_channels=64, feat_channels=64),
    roi_head=dict(bbox_roi_extractor=dict(out_channels=64), bbox_head=dict(in_channels=64, fc_out_channels=256)),
    train_cfg=dict(rpn_proposal=dict(nms_pre=500, max_per_img=200), rcnn=dict(sampler=dict(num=64))),
    test_cfg=dict(rpn=dict(nms_pre=300, max_per_img=100), rcnn=dict(max_per_img=50)),
)

scale = (256, 128)
train_pipeline = _base_.train_pipeline
train_pipeline[2]['scale'] = scale
test_pipeline = _base_.test_pipeline
test_pipeline[1]['scale'] = scale
train_dataloader = dict(batch_size=8, num_workers=0, persistent_workers=False, dataset=dict(pipeline=train_pipeline))
test_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(pipeline=test_pipeline))

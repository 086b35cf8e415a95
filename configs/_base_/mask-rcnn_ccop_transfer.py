# Mask R-CNN that starts from a CCOP checkpoint: what every transfer of it shares.
_base_ = ['mmdet::_base_/models/mask-rcnn_r50_fpn.py', 'mmdet::_base_/default_runtime.py']

custom_imports = dict(imports=['ccop_mm'], allow_failed_imports=False)

# Deviations from mmdet's base are the paper's protocol, which is that of MoCo's Detectron2 configs: normalization trains,
# synchronized, in backbone and FPN, and no stage is frozen. The heads keep mmdet's form: the 2-FC box head (Detectron2's
# standard head with FPN) has no norm layer.
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    backbone=dict(frozen_stages=-1, norm_cfg=norm_cfg, norm_eval=False, init_cfg=None),
    neck=dict(norm_cfg=norm_cfg),
    init_cfg=dict(type='CCOPPretrained', checkpoint=None),
)

# Mask R-CNN that starts from a CCOP checkpoint: what every transfer of it shares.
_base_ = ['mmdet::_base_/models/mask-rcnn_r50_fpn.py', 'mmdet::_base_/default_runtime.py']

custom_imports = dict(imports=['ccop_mm'], allow_failed_imports=False)

# Saves before it deletes; see docs/design.md.
default_hooks = dict(checkpoint=dict(type='mmselfsup.SafeCheckpointHook'))

# What differs from mmdet's base is the paper's protocol, by the Detectron2 YAML released with it: normalization trains,
# synchronized, in backbone and FPN, and no stage is frozen (heads: mask-rcnn_r50-fpn_1x_coco.py). No ImageNet weights:
# backbone and FPN come from CCOP, or from what the config names.
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    backbone=dict(frozen_stages=-1, norm_cfg=norm_cfg, norm_eval=False, init_cfg=None),
    neck=dict(norm_cfg=norm_cfg),
    init_cfg=dict(type='CCOPPretrained', checkpoint=None),
)

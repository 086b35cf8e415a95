# Common settings of all Mask R-CNN transfer configs.
_base_ = ['mmdet::_base_/models/mask-rcnn_r50_fpn.py', 'mmdet::_base_/default_runtime.py']

custom_imports = dict(imports=['ccop_mm'], allow_failed_imports=False)

# SafeCheckpointHook deletes old checkpoints only after saving a new one (docs/design.md).
default_hooks = dict(checkpoint=dict(type='mmselfsup.SafeCheckpointHook'))

# The paper fine-tunes with SyncBN in backbone and FPN and without frozen stages, as does the Detectron2 YAML released with
# it. mask-rcnn_r50-fpn_1x_coco.py adds the heads. ImageNet weights are not loaded: model.init_cfg sets the initialization.
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    backbone=dict(frozen_stages=-1, norm_cfg=norm_cfg, norm_eval=False, init_cfg=None),
    neck=dict(norm_cfg=norm_cfg),
    init_cfg=dict(type='CCOPPretrained', checkpoint=None),
)

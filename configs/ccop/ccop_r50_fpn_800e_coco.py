# The paper's recipe: ResNet-50-FPN, COCO train2017 without labels, 800 epochs, batch size 256 (8 GPUs x 32).
_base_ = ['../_base_/ccop_r50_fpn.py', '../_base_/coco_two_views.py', '../_base_/default_runtime.py']

optim_wrapper = dict(
    type='OptimWrapper',
    # The paper gives no warm-up. fused=True updates all parameters in one pass (docs/performance.md).
    optimizer=dict(type='SGD', lr=0.3, momentum=0.9, weight_decay=1e-4, fused=True),
)
# Total batch size that the learning rate is for; used by tools/train.py --auto-scale-lr.
auto_scale_lr = dict(enable=False, base_batch_size=256)
param_scheduler = [dict(type='CosineAnnealingLR', T_max=800, eta_min=0.0, by_epoch=True, convert_to_iter_based=True)]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=800)

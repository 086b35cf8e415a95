# The paper's recipe in bfloat16 with channels-last memory and compiled image encoders, for GPUs of the Ampere generation or
# later. Compilation requires a C++ compiler and slows down the first iterations by minutes. Losses equal those of
# ccop_r50_fpn_800e_coco.py up to bfloat16 rounding (docs/performance.md), and either config resumes checkpoints of the other.
_base_ = ['./ccop_r50_fpn_800e_coco.py']

model = dict(channels_last=True)
# bfloat16 has the range of float32, so that no loss scaling is needed. Boxes, RoIAlign, similarities and losses stay float32.
optim_wrapper = dict(type='AmpOptimWrapper', dtype='bfloat16', loss_scale=1.0)
custom_hooks = [*_base_.custom_hooks, dict(type='CompileHook')]

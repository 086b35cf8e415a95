# The paper's recipe, faster on a GPU with bfloat16 (Ampere or later): half the bytes, the layout of its matrix units, and
# image encoders compiled (which needs a C++ compiler and takes minutes at the first steps). Losses follow the plain
# preset's within bfloat16's rounding (docs/performance.md). A checkpoint of either goes on in the other.
_base_ = ['./ccop_r50_fpn_800e_coco.py']

model = dict(channels_last=True)
# bfloat16 has float32's range: nothing to scale. Boxes, RoIAlign, similarities and losses stay float32.
optim_wrapper = dict(type='AmpOptimWrapper', dtype='bfloat16', loss_scale=1.0)
custom_hooks = [*_base_.custom_hooks, dict(type='CompileHook')]

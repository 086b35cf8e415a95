# CCOP's backbone, images, views, loader, learning rate and schedule for methods of mmselfsup that train on whole images. The
# list of images is read from CCOP's proposals file.
_base_ = ['../ccop/ccop_r50_fpn_800e_coco.py']

train_dataloader = dict(dataset=dict(num_proposals=0))
custom_hooks = [dict(type='FiniteLossHook')]  # the other hooks require CCOP

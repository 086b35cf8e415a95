# CCOP with the paper's network on a GPU: ResNet-50, views of 160 px. Momentum and queue lengths suit a small dataset.
_base_ = ['../../configs/ccop/ccop_r50_fpn_800e_coco.py']

model = dict(queue_len='auto', object_queue_len='auto', momentum=0.99)

train_pipeline = _base_.train_pipeline
train_pipeline[1]['transforms'][0]['size'] = 160
train_dataloader = dict(batch_size=128, num_workers=12, dataset=dict(pipeline=train_pipeline))

optim_wrapper = dict(optimizer=dict(lr=0.15))  # 0.3 for a batch of 256, scaled linearly

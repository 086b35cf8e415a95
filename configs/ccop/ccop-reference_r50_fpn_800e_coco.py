# The reference implementation (the authors' released code) where it differs from the paper. Its proposals (suppressed in
# random order, the first 50 with sides of at least 20 pixels kept) are a setting of tools/propose.py, not of this config.
_base_ = ['./ccop_r50_fpn_800e_coco.py']

model = dict(
    # relu(q_i.k_j - q_j.k_j + 0.4) with the key embeddings of the unjittered boxes; pairs by the boxes of the key view.
    intra_loss=dict(mode='triplet'),
    box_jitter=dict(
        anchor='center',
        noise=(0.075, 0.30),  # x and y, half the width of the interval
        noise_wh=(0.175, 0.70),  # width and height
        min_iou=(0.8, 0.4),
        redraw=False,  # ten candidates, of which invalid ones are masked ...
        include_original=True,  # ... and the original box as the 11th
    ),
    image_projector=dict(dropout=0.1),
    object_projector=dict(dropout=0.1),
)

train_pipeline = _base_.train_pipeline
train_pipeline[1]['transforms'][0]['scale'] = (0.1, 1.0)
train_pipeline[1]['transforms'][1]['transforms'][0]['saturation'] = 0.2
train_dataloader = dict(dataset=dict(num_proposals=50, pipeline=train_pipeline))

param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, begin=0, end=10, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        T_max=790,
        eta_min=0.0,
        by_epoch=True,
        begin=10,
        end=800,
        convert_to_iter_based=True,
    ),
]

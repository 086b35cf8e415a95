# An example of a custom skeleton (docs/keypoint_rcnn.md): 20 keypoints shared by five categories. data/voc_animals/ must
# contain annotations/train.json, annotations/val.json, train/ and val/.
_base_ = ['./keypoint-rcnn_r18-fpn_demo.py']

legs = ('front_elbow', 'back_elbow', 'front_knee', 'back_knee', 'front_paw', 'back_paw')
pairs = [(f'left_{part}', f'right_{part}') for part in ('eye', 'ear', *legs)]
(left_eye, right_eye), ears, *leg_pairs = pairs
metainfo = dict(
    classes=('cat', 'cow', 'dog', 'horse', 'sheep'),
    palette=[(230, 159, 0), (86, 180, 233), (0, 158, 115), (213, 94, 0), (204, 121, 167)],
    keypoint_names=(left_eye, right_eye, 'nose', *ears, *sum(leg_pairs, ()), 'throat', 'withers', 'tail'),
    flip_pairs=pairs,
    skeleton=(
        *(('left_eye', 'right_eye'), ('left_eye', 'nose'), ('right_eye', 'nose'), ('nose', 'throat')),
        *(('left_eye', 'left_ear'), ('right_eye', 'right_ear'), ('throat', 'withers'), ('withers', 'tail')),
        *(
            (start, f'{side}_{end}_elbow')
            for side in ('left', 'right')
            for start, end in (('throat', 'front'), ('tail', 'back'))
        ),
        *((f'{side}_{end}_elbow', f'{side}_{end}_knee') for side in ('left', 'right') for end in ('front', 'back')),
        *((f'{side}_{end}_knee', f'{side}_{end}_paw') for side in ('left', 'right') for end in ('front', 'back')),
    ),
    # COCO's values of eye, nose, ear, hip, knee and ankle. COCO has no throat, withers and tail: 0.1 is a guess.
    sigmas=(0.025, 0.025, 0.026, 0.035, 0.035, *[0.107] * 4, *[0.087] * 4, *[0.089] * 4, 0.1, 0.1, 0.1),
    keypoint_offset=0.0,
)

model = dict(roi_head=dict(bbox_head=dict(num_classes=5), keypoint_head=dict(num_keypoints=20)))

data_root = 'data/voc_animals/'
train_dataloader = dict(
    dataset=dict(
        data_root=data_root, ann_file='annotations/train.json', data_prefix=dict(img='train/'), metainfo=metainfo
    )
)
val_dataloader = dict(
    dataset=dict(data_root=data_root, ann_file='annotations/val.json', data_prefix=dict(img='val/'), metainfo=metainfo)
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/val.json', classwise=True)
test_evaluator = val_evaluator

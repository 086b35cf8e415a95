# CCOP with annotated boxes instead of selective search (paper, Table 5): an upper bound that uses labels. Create the
# proposals with
#   python tools/propose.py data/coco/annotations/instances_train2017.json --method ground-truth \
#       --out data/coco/proposals/train2017-ground-truth.npz
_base_ = ['../ccop/ccop_r50_fpn_800e_coco.py']

train_dataloader = dict(
    dataset=dict(proposal_file='proposals/train2017-ground-truth.npz', allow_ground_truth=True),
)

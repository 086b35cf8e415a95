import pytest
from pycocotools.cocoeval import Params

from ccop_mm.detection import CocoKeypointDataset
from ccop_mm.detection.skeleton import complete_metainfo
from ccop_mm.utils.errors import InputError

HAND = dict(
    keypoint_names=('wrist', 'left_tip', 'right_tip', 'palm'),
    flip_pairs=(('left_tip', 'right_tip'),),
    skeleton=(('wrist', 'palm'), ('palm', 'left_tip'), ('palm', 'right_tip')),
    sigmas=0.05,
    keypoint_offset=0.0,
)


def test_indices_are_derived_from_names():
    completed = complete_metainfo(HAND)
    assert completed['flip_indices'] == [0, 2, 1, 3]
    assert completed['skeleton_links'] == [[0, 3], [3, 1], [3, 2]]
    assert completed['sigmas'] == [0.05] * 4
    assert HAND['sigmas'] == 0.05  # the input is not modified
    assert complete_metainfo(completed) == completed


def test_default_metainfo_matches_pycocotools():
    completed = complete_metainfo(CocoKeypointDataset.METAINFO)
    assert completed['sigmas'] == pytest.approx(Params(iouType='keypoints').kpt_oks_sigmas.tolist())
    assert completed['flip_indices'] == [0, *(index for pair in range(1, 17, 2) for index in (pair + 1, pair))]


@pytest.mark.parametrize(
    ('change', 'pattern'),
    [
        (dict(keypoint_names=('wrist', 'wrist')), "keypoint_names.*'wrist'"),
        (dict(flip_pairs=(('left_tip', 'thumb'),)), 'flip_pairs.*thumb'),
        (dict(flip_pairs=(('left_tip', 'right_tip'), ('palm', 'right_tip'))), "flip_pairs.*'right_tip'"),
        (dict(flip_pairs=(('palm', 'palm'),)), "flip_pairs.*'palm', 'palm'"),
        (dict(skeleton=(('wrist', 'palm', 'left_tip'),)), "skeleton.*'wrist', 'palm', 'left_tip'"),
        (dict(sigmas=(0.1, 0.1)), r'sigmas.*\b4\b.*\(0\.1, 0\.1\)'),
        (dict(sigmas=0), r'sigmas.*\b0$'),
    ],
)
def test_invalid_metainfo_raises(change, pattern):
    with pytest.raises(InputError, match=pattern):
        complete_metainfo(dict(HAND, **change))


def test_keypoint_names_without_a_matching_skeleton_raise():
    # flip_pairs and skeleton keep the defaults for COCO.
    with pytest.raises(InputError, match='flip_pairs.*left_eye'):
        CocoKeypointDataset(metainfo=dict(keypoint_names=('head', 'tail')), lazy_init=True)

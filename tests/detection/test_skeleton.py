import pytest

from ccop_mm.detection import CocoKeypointDataset
from ccop_mm.detection.skeleton import complete_metainfo
from ccop_mm.errors import InputError

HAND = dict(
    keypoint_names=('wrist', 'left_tip', 'right_tip', 'palm'),
    flip_pairs=(('left_tip', 'right_tip'),),
    skeleton=(('wrist', 'palm'), ('palm', 'left_tip'), ('palm', 'right_tip')),
    sigmas=0.05,
    keypoint_offset=0.0,
)


def test_what_follows_from_the_names():
    completed = complete_metainfo(HAND)
    assert completed['flip_indices'] == [0, 2, 1, 3]
    assert completed['skeleton_links'] == [[0, 3], [3, 1], [3, 2]]
    assert completed['sigmas'] == [0.05] * 4
    assert HAND['sigmas'] == 0.05
    assert complete_metainfo(completed) == completed


def test_cocos_person_is_pycocotools():
    pytest.importorskip('pycocotools')
    from pycocotools.cocoeval import Params

    completed = complete_metainfo(CocoKeypointDataset.METAINFO)
    assert completed['sigmas'] == pytest.approx(Params(iouType='keypoints').kpt_oks_sigmas.tolist())
    assert completed['flip_indices'] == [0, *(index for pair in range(1, 17, 2) for index in (pair + 1, pair))]


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(keypoint_names=('wrist', 'wrist')), "'wrist' twice"),
        (dict(flip_pairs=(('left_tip', 'thumb'),)), 'flip_pairs.*thumb.*set keypoint_names'),
        (dict(flip_pairs=(('left_tip', 'right_tip'), ('palm', 'right_tip'))), "flip_pairs has 'right_tip' twice"),
        (dict(flip_pairs=(('palm', 'palm'),)), 'no pair of two'),
        (dict(skeleton=(('wrist', 'palm', 'left_tip'),)), 'skeleton'),
        (dict(sigmas=(0.1, 0.1)), 'sigmas.*4.*got 2'),
        (dict(sigmas=0), 'above 0'),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    with pytest.raises(InputError, match=message):
        complete_metainfo(dict(HAND, **change))


def test_other_names_alone_are_refused():
    """The rest of the metainfo is still COCO's."""
    with pytest.raises(InputError, match='set keypoint_names, flip_pairs, skeleton and sigmas together'):
        CocoKeypointDataset(metainfo=dict(keypoint_names=('head', 'tail')), lazy_init=True)

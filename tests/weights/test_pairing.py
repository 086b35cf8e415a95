import re

import pytest

from ccop_mm.utils.errors import InputError
from ccop_mm.weights.mismatch import MAX_LISTED
from ccop_mm.weights.pairing import find_first_level, pair_keys


def fpn(levels, outputs=None, channels=lambda stage: 4 * 2**stage):
    """Returns the shapes of an FPN with mmdet's keys."""
    keys = {f'neck.lateral_convs.{level}.conv.weight': (8, channels(stage), 1, 1) for level, stage in enumerate(levels)}
    keys.update({f'neck.fpn_convs.{level}.conv.weight': (8, 8, 3, 3) for level in range(outputs or len(levels))})
    return keys


def convs(*levels):
    return {f'neck.fpn_convs.{level}.conv.weight' for level in levels}


def test_levels_are_matched_by_stage_and_not_by_shape():
    detector = fpn(levels=(1, 2, 3), outputs=5)
    pairing = pair_keys(detector, fpn(levels=(0, 1, 2, 3)), select_optional=lambda missing: missing)
    assert pairing.sources == {
        f'neck.{kind}.{level}.conv.weight': f'neck.{kind}.{level + 1}.conv.weight'
        for kind in ('lateral_convs', 'fpn_convs')
        for level in range(3)
    }
    assert set(pairing.kept) == convs(3, 4) and pairing.first_level == 1


@pytest.mark.parametrize('outputs', [3, 4, 5])
def test_equal_fpns_are_not_shifted(outputs):
    """The FPN of RetinaNet, pre-trained with the neck of RetinaNet, with or without the levels P6 and P7."""
    detector = fpn(levels=(1, 2, 3), outputs=5)
    pairing = pair_keys(detector, fpn(levels=(1, 2, 3), outputs=outputs), select_optional=lambda missing: missing)
    assert all(key == source for key, source in pairing.sources.items())
    assert set(pairing.kept) == convs(*range(outputs, 5)) and pairing.first_level == 0


def test_an_fpn_with_more_outputs_is_not_taken_for_one_that_starts_at_c2():
    """Both have output convolutions 0 to 3, but one has lateral convolutions 0 to 2."""
    assert find_first_level(fpn((1, 2, 3), outputs=4), fpn((0, 1, 2, 3), outputs=4)) == 1
    assert find_first_level(fpn((1, 2, 3), outputs=4), fpn((1, 2, 3), outputs=4)) == 0


def test_stages_that_equal_shapes_do_not_determine_are_an_error():
    wide = {'channels': lambda stage: 16}
    with pytest.raises(InputError, match=r'\b4 levels.*\b3 of them'):
        find_first_level(fpn((1, 2, 3), **wide), fpn((0, 1, 2, 3), **wide))
    assert find_first_level(fpn((0, 1, 2), **wide), fpn((0, 1, 2), **wide)) == 0


def test_a_neck_with_other_convolutions_is_not_shifted():
    """The outputs of PAFPN depend on all finer levels."""
    detector, checkpoint = fpn((1, 2, 3)), fpn((0, 1, 2, 3))
    for number, shapes in ((2, detector), (3, checkpoint)):
        shapes.update({f'neck.downsample_convs.{level}.conv.weight': (8, 8, 3, 3) for level in range(number)})
    assert find_first_level(detector, checkpoint) == 0
    with pytest.raises(InputError, match=r'neck\.downsample_convs\.2'):
        pair_keys(detector, checkpoint)


def test_a_level_above_those_of_the_detector_is_an_error():
    with pytest.raises(InputError, match=r'neck\.lateral_convs\.3'):
        pair_keys(fpn(levels=(0, 1, 2)), fpn(levels=(0, 1, 2, 3)))


def test_a_missing_level_is_no_shift():
    checkpoint = fpn((0, 1, 2, 3))
    del checkpoint['neck.lateral_convs.1.conv.weight']
    with pytest.raises(InputError, match=r'1 keys missing(?s:.*)neck\.lateral_convs\.1'):
        pair_keys(fpn((0, 1, 2, 3)), checkpoint)


def test_only_the_selected_keys_may_be_missing():
    detector, checkpoint = fpn((0, 1, 2, 3), outputs=6), fpn((0, 1, 2, 3), outputs=4)
    with pytest.raises(InputError, match=r'1 keys missing(?s:.*)neck\.fpn_convs\.4'):
        pair_keys(detector, checkpoint, select_optional=lambda missing: convs(5))
    selected = []
    pair_keys(detector, checkpoint, select_optional=lambda missing: selected.append(missing) or missing)
    assert selected == [convs(4, 5)]


def test_all_mismatched_keys_are_listed():
    detector = {'backbone.a': (1,), 'backbone.b': (2, 3), 'neck.c': (), 'neck.d': (4,), 'roi_head.e': (5,)}
    checkpoint = {'backbone.b': (3, 2), 'backbone.f': (6,), 'neck.c': (), 'neck.d': (4,), 'image_queue.keys': (7,)}
    with pytest.raises(InputError) as caught:
        pair_keys(detector, checkpoint)
    first, *rest = str(caught.value).splitlines()
    assert re.findall(r'\d+', first) == ['1', '1', '1']
    values = [re.findall(r'backbone\.\w|\(\d, \d\)', line) for line in rest]
    assert values == [['backbone.a'], ['backbone.b', '(3, 2)', '(2, 3)'], ['backbone.f']]


def test_long_lists_are_truncated():
    detector = {f'backbone.a{number}.weight': () for number in range(MAX_LISTED + 3)}
    checkpoint = {f'backbone.b{number}.weight': () for number in range(MAX_LISTED + 5)}
    with pytest.raises(InputError) as caught:
        pair_keys(detector, checkpoint)
    first, *rest = str(caught.value).splitlines()
    assert re.findall(r'\d+', first) == [str(MAX_LISTED + 3), '0', str(MAX_LISTED + 5)]
    assert len(rest) == 2 * (MAX_LISTED + 1)
    assert [re.search(r'\b(\d) more', rest[line])[1] for line in (MAX_LISTED, -1)] == ['3', '5']

import json

import pytest

from ccop_mm.datasets.coco_subset import choose, write_subset
from ccop_mm.errors import InputError


@pytest.fixture
def source(tmp_path):
    """Forty images, image i with i % 3 annotations."""
    images = [dict(id=number, file_name=f'{number}.jpg') for number in range(40)]
    annotations = [dict(id=10 * n + k, image_id=n, category_id=7) for n in range(40) for k in range(n % 3)]
    path = tmp_path / 'instances.json'
    path.write_text(json.dumps(dict(images=images, annotations=annotations, categories=[dict(id=7, name='cat')])))
    return path


def test_the_choice_is_the_same_everywhere():
    # Held here so that a change cannot pass unseen: a run on 10 % of COCO compares with others on the same 10 %.
    assert sorted(choose(range(100), 5, seed=0)) == [0, 1, 17, 53, 74]


def test_order_plays_no_part_and_smaller_parts_lie_within_larger():
    ids = list(range(1000))
    tenth = choose(ids, 10, seed=3)
    assert len(tenth) == 100
    assert choose(reversed(ids), 10, seed=3) == tenth
    assert choose(ids, 1, seed=3) < tenth < choose(ids, 50, seed=3)
    assert choose(ids, 100, seed=3) == set(ids)


def test_the_choice_is_even_over_ids_and_seeds():
    ids = range(1000)
    counts = [sum(image_id < 500 for image_id in choose(ids, 10, seed)) for seed in range(200)]
    # Hypergeometric: mean 50, deviation 4.7; the mean of 200 deviates by 0.34.
    assert abs(sum(counts) / 200 - 50) < 1.5
    assert 3.5 < (sum((count - 50) ** 2 for count in counts) / 200) ** 0.5 < 6


def test_at_least_one_and_rounded():
    assert len(choose(range(3), 1, 0)) == 1
    assert len(choose(range(118287), 10, 0)) == 11829


def test_annotations_go_with_their_images(source, tmp_path):
    content = json.loads(source.read_text())
    images, annotations = write_subset(source, tmp_path / 'part.json', 25, seed=1)
    part = json.loads((tmp_path / 'part.json').read_text())
    kept = choose(range(40), 25, 1)
    assert images == 10
    assert part['images'] == [image for image in content['images'] if image['id'] in kept]
    assert part['annotations'] == [one for one in content['annotations'] if one['image_id'] in kept]
    assert len(part['annotations']) == annotations > 0
    assert part['categories'] == content['categories']


@pytest.mark.parametrize(
    ('name', 'percent', 'message'),
    [
        ('absent.json', 10, 'absent.json does not exist'),
        ('bad.json', 10, 'bad.json is no COCO json'),
        ('list.json', 10, 'list.json is no COCO json'),
        ('empty.json', 10, 'lists no images'),
        ('instances.json', 0, 'must be above 0'),
        ('instances.json', 101, 'at most 100'),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(source, name, percent, message):
    source.with_name('bad.json').write_text('{"images": [')
    source.with_name('list.json').write_text('[]')
    source.with_name('empty.json').write_text('{"images": [], "annotations": []}')
    with pytest.raises(InputError, match=message) as caught:
        write_subset(source.with_name(name), source.with_name('out.json'), percent)
    assert len(str(caught.value).splitlines()) == 1
    assert not source.with_name('out.json').exists()


def test_the_file_itself_is_not_written_over(source):
    with pytest.raises(InputError, match='is the file itself'):
        write_subset(source, source, 10)

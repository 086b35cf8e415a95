import json

import pytest

from ccop_mm.datasets.coco_subset import sample_image_ids, write_random_subset
from ccop_mm.utils.errors import InputError


@pytest.fixture
def source(tmp_path):
    """A COCO json of 40 images; image i has i % 3 annotations."""
    images = [dict(id=number, file_name=f'{number}.jpg') for number in range(40)]
    annotations = [dict(id=10 * n + k, image_id=n, category_id=7) for n in range(40) for k in range(n % 3)]
    path = tmp_path / 'instances.json'
    path.write_text(json.dumps(dict(images=images, annotations=annotations, categories=[dict(id=7, name='cat')])))
    return path


def test_sample_is_reproducible():
    # Pinned, because results on 10 % of COCO are only comparable on the same 10 %.
    assert sorted(sample_image_ids(range(100), 5, seed=0)) == [0, 1, 17, 53, 74]


def test_sample_is_independent_of_order_and_nested():
    ids = list(range(1000))
    tenth = sample_image_ids(ids, 10, seed=3)
    assert len(tenth) == 100
    assert sample_image_ids(reversed(ids), 10, seed=3) == tenth
    assert sample_image_ids(ids, 1, seed=3) < tenth < sample_image_ids(ids, 50, seed=3)
    assert sample_image_ids(ids, 100, seed=3) == set(ids)


def test_sample_is_uniform_over_ids_and_seeds():
    ids = range(1000)
    counts = [sum(image_id < 500 for image_id in sample_image_ids(ids, 10, seed)) for seed in range(200)]
    # Hypergeometric distribution: mean 50, standard deviation 4.7; that of the mean of 200 samples is 0.34.
    assert abs(sum(counts) / 200 - 50) < 1.5
    assert 3.5 < (sum((count - 50) ** 2 for count in counts) / 200) ** 0.5 < 6


def test_sample_size_is_rounded_and_at_least_one():
    assert len(sample_image_ids(range(3), 1, 0)) == 1
    assert len(sample_image_ids(range(118287), 10, 0)) == 11829


def test_subset_contains_the_annotations_of_its_images(source, tmp_path):
    content = json.loads(source.read_text())
    num_images, num_annotations = write_random_subset(source, tmp_path / 'part.json', 25, seed=1)
    subset = json.loads((tmp_path / 'part.json').read_text())
    kept = sample_image_ids(range(40), 25, 1)
    assert num_images == 10
    assert subset['images'] == [image for image in content['images'] if image['id'] in kept]
    assert subset['annotations'] == [one for one in content['annotations'] if one['image_id'] in kept]
    assert len(subset['annotations']) == num_annotations > 0
    assert subset['categories'] == content['categories']


@pytest.mark.parametrize(
    ('name', 'percent', 'value'),
    [
        ('absent.json', 10, r'absent\.json'),
        ('bad.json', 10, r'bad\.json'),
        ('list.json', 10, r'list\.json'),
        ('no_annotations.json', 10, r'no_annotations\.json.*annotations'),
        ('empty.json', 10, r'empty\.json'),
        ('instances.json', 0, r'\b0$'),
        ('instances.json', 101, r'\b101$'),
    ],
)
def test_invalid_input_raises_one_line_and_writes_nothing(source, name, percent, value):
    source.with_name('bad.json').write_text('{"images": [')
    source.with_name('list.json').write_text('[]')
    source.with_name('no_annotations.json').write_text('{"images": [{"id": 1}]}')
    source.with_name('empty.json').write_text('{"images": [], "annotations": []}')
    with pytest.raises(InputError, match=value) as caught:
        write_random_subset(source.with_name(name), source.with_name('out.json'), percent)
    assert len(str(caught.value).splitlines()) == 1
    assert not source.with_name('out.json').exists()


def test_input_file_is_not_overwritten(source):
    before = source.read_bytes()
    with pytest.raises(InputError, match=r'instances\.json'):
        write_random_subset(source, source, 10)
    assert source.read_bytes() == before

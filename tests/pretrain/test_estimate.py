"""Estimates of the duration."""

import numpy as np
import pytest
from mmengine.config import Config

from ccop_mm.pretrain import estimate
from ccop_mm.pretrain.estimate import StepTime, measure_store, sample_images
from ccop_mm.proposals.store import ProposalStore
from ccop_mm.utils.errors import InputError
from ccop_mm.utils.images import list_images


def test_statistics_of_proposals():
    boxes = np.arange(40).reshape(10, 4)
    store = ProposalStore(
        [(1, 'a.png', (60, 80), boxes), (2, 'b.png', (90, 50), boxes[:2]), (3, 'c.png', (70, 70), boxes[:0])],
        skipped={'d.png': 'damaged'},
    )
    statistics = measure_store(store, limit=4)
    assert (statistics.num_images, statistics.num_skipped) == (3, 1)
    assert statistics.mean_proposals == 2.0
    assert statistics.short_sides == [60, 50, 70]
    with pytest.raises(InputError, match='1 images'):
        measure_store(ProposalStore([], skipped={'d.png': 'damaged'}), limit=4)


def test_sample_of_images(images):
    """The damaged file may be in the sample; the number of images is that of all."""
    sample = sample_images(list_images(images), limit=48)
    assert sample.statistics.num_images == 9
    assert set(sample.statistics.short_sides) == {96} and len(sample.statistics.short_sides) == 8
    assert 3 <= len(sample.store) <= 4
    assert sample.statistics.mean_proposals == pytest.approx(
        np.mean([len(entry[3]) for entry in sample.store.entries()])
    )
    assert 0 < sample.seconds_per_image < 60
    for path in images.rglob('*.png'):
        path.unlink()
    with pytest.raises(InputError, match='damaged.jpg'):
        sample_images(list_images(images), limit=48)


def test_images_are_spread_over_all():
    assert estimate._spread(range(100), 4) == [0, 25, 50, 75]
    assert estimate._spread(range(3), 4) == [0, 1, 2]


@pytest.mark.parametrize(
    ('device', 'num_workers', 'expected'),
    [('cpu', 0, 30), ('cuda', 0, 30), ('cuda', 2, 20), ('cuda', 1, 20), ('cuda', 10, 10), ('cpu', 2, 15)],
)
def test_estimate_of_steps(monkeypatch, device, num_workers, expected):
    """10 steps of 1 s, with 2 s to load each batch, on four cores."""
    monkeypatch.setattr(estimate, 'get_device', lambda: device)
    monkeypatch.setattr(estimate.os, 'cpu_count', lambda: 4)
    loading = 4.0 if (device, num_workers) == ('cuda', 2) else 2.0
    assert StepTime(step=1.0, loading=loading).estimate(10, num_workers) == expected


def test_subset_contains_the_images_of_a_json(tmp_path):
    """Ids of a json are not those of the paths in a folder."""
    store = ProposalStore([(number, f'./{number}.png', (60, 80), [[0, 0, 20, 20]]) for number in range(10)])
    cfg = Config(dict(train_dataloader=dict(dataset=dict(type='ProposalDataset', ann_file='all.json'))))
    dataset = estimate._write_subset(cfg, store, tmp_path)
    assert [image.image_id for image in list_images(dataset['ann_file'], tmp_path)] == [0, 2, 5, 7]
    subset = ProposalStore.load(dataset['proposal_file'])
    assert subset.image_ids.tolist() == [0, 2, 5, 7] and subset.file_name(5) == './5.png'

"""Proposals of the first version (tests/data/v0.1.0/): the file is read, and generated again byte for byte."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from ccop_mm.proposals import ProposalStore, generate_proposals, list_images
from ccop_mm.version import __version__

DATA = Path(__file__).resolve().parents[1] / 'data' / 'v0.1.0'


@pytest.fixture
def expected():
    return json.loads((DATA / 'expected.json').read_text())


def test_file_is_read(expected):
    store = ProposalStore.load(DATA / 'proposals.npz')
    assert store.image_ids.tolist() == expected['image_ids']
    assert {name: store.boxes(store.image_id(name)).tolist() for name in expected['boxes']} == expected['boxes']
    assert len(store) == len(expected['boxes']) == 4
    assert store.skipped == {}


def test_file_is_generated_again(tmp_path):
    folder, out = tmp_path / 'images', tmp_path / 'proposals.npz'
    folder.mkdir()
    for index in range(4):
        shutil.copy(DATA / f'{index}.png', folder)
    generate_proposals(list_images(folder), out, workers=1, progress=False)
    versions = {'ccop_mm': __version__, 'opencv': cv2.__version__}
    old, new = ProposalStore.load(DATA / 'proposals.npz').metadata, ProposalStore.load(out).metadata
    assert {**old, **versions} == new
    if versions.items() <= old.items():
        assert out.read_bytes() == (DATA / 'proposals.npz').read_bytes()
    with np.load(DATA / 'proposals.npz') as old_arrays, np.load(out) as new_arrays:
        assert old_arrays.files == new_arrays.files
        for name in set(old_arrays.files) - {'metadata', 'checksum'}:
            np.testing.assert_array_equal(old_arrays[name], new_arrays[name], err_msg=name, strict=True)

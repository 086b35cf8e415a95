"""Fixtures that several test files share."""

import os
from pathlib import Path

if os.environ.get('CCOP_MM_TEST_GPU') != '1':  # `make test-gpu`: results on a GPU are not equal to the last bit
    os.environ['CUDA_VISIBLE_DEVICES'] = ''
if 'PYTEST_XDIST_WORKER' in os.environ:  # one process per core: more threads would compete for them
    os.environ.setdefault('OMP_NUM_THREADS', '1')

# isort: split
import random

import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope
from tool_runner import call_tool  # noqa: F401  fixture

import ccop_mm  # noqa: F401  patches the upstream libraries, without which mmselfsup cannot be imported

SHARED_DATA = Path(__file__).resolve().parents[2] / 'shared' / 'data'


@pytest.fixture(scope='session')
def coco_cc31():
    """31 COCO images with instances and person keypoints (CC BY, CC BY-SA); not part of the project."""
    path = SHARED_DATA / 'coco_cc31'
    if not path.is_dir():
        pytest.skip(f'needs the images of {path.name}, which are not part of the project')
    return path


@pytest.fixture(scope='session')
def voc_animals():
    """VOC2012 images with boxes of 20 classes and keypoints (research use only); not part of the project."""
    path = SHARED_DATA / 'voc_animals'
    if not path.is_dir():
        pytest.skip(f'needs the images of {path.name}, which are not part of the project')
    return path


@pytest.fixture(autouse=True)
def independent_tests():
    """Makes tests independent of their order: seeds the global generators with 0, and restores mmengine's scopes."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    scopes = dict(DefaultScope._instance_dict)
    yield
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(scopes)


@pytest.fixture
def generator():
    """Generator with seed 0, new for every test."""
    return torch.Generator().manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests whose images are not part of the project."""
    for item in items:
        if {'coco_cc31', 'voc_animals'} & set(getattr(item, 'fixturenames', ())):
            item.add_marker(pytest.mark.data)

"""Fixtures that several test files share."""

from pathlib import Path

import pytest
import torch

import ccop_mm  # noqa: F401  makes mmselfsup importable, for test files that import it first

SHARED_DATA = Path(__file__).resolve().parents[2] / 'shared' / 'data'


@pytest.fixture(scope='session')
def coco_cc31():
    """31 real COCO photos with instances and person keypoints (CC BY, CC BY-SA); not part of the project."""
    path = SHARED_DATA / 'coco_cc31'
    if not path.is_dir():
        pytest.skip(f'needs the photos of {path.name}, which are not part of the project')
    return path


@pytest.fixture(scope='session')
def voc_animals():
    """Real VOC2012 photos with boxes of 20 classes and keypoints (research use only); not part of the project."""
    path = SHARED_DATA / 'voc_animals'
    if not path.is_dir():
        pytest.skip(f'needs the photos of {path.name}, which are not part of the project')
    return path


@pytest.fixture
def generator():
    """A seeded generator, fresh for every test."""
    return torch.Generator().manual_seed(0)

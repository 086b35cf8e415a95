"""Fixtures of the keypoint tests."""

import json

import cv2
import numpy as np
import pytest
from mmengine.registry import DefaultScope

import ccop_mm.detection  # noqa: F401  registers its classes


@pytest.fixture(autouse=True)
def scope():
    """Sets the default scope to mmdet, as the runner of an mmdet config does."""
    with DefaultScope.overwrite_default_scope('mmdet'):
        yield


#: A skeleton of four keypoints, of which a flip swaps the middle two. Neither is the case for COCO.
KITE = dict(
    classes=('kite', 'arrow'),
    palette=[(220, 20, 60), (0, 60, 220)],
    keypoint_names=('top', 'left', 'right', 'tail'),
    flip_pairs=(('left', 'right'),),
    skeleton=(('top', 'left'), ('top', 'right'), ('left', 'tail'), ('right', 'tail')),
    sigmas=0.1,
    keypoint_offset=0.5,
)


@pytest.fixture
def kite_metainfo():
    """Returns the metainfo of the ``kites`` dataset."""
    return dict(KITE)


@pytest.fixture
def kites(tmp_path):
    """Writes eight small images with up to two objects each, of two categories; returns the COCO annotation file.

    Image 7 has no object, image 6 an object without labeled keypoints and image 5 a crowd.
    """
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for image_id in range(8):
        image = rng.integers(0, 60, (64, 96, 3)).astype(np.uint8)
        for index in range(2 if image_id % 2 else 1):
            if image_id == 7:
                break
            x, y = int(rng.integers(2, 16)) + 44 * index, int(rng.integers(2, 20))
            image[y : y + 40, x : x + 30] = 90
            points = [(x + 15, y + 1), (x + 1, y + 15), (x + 28, y + 15), (x + 15, y + 38)]
            for color, (u, v) in zip(((0, 0, 255), (0, 255, 0), (255, 0, 0), (255, 255, 255)), points, strict=True):
                cv2.circle(image, (u, v), 2, color, -1)
            flags = [0 if image_id == 6 else 1 + int(rng.integers(2)) for _ in points]
            crowd = int(image_id == 5 and index == 1)
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=image_id,
                    category_id=(5, 3)[int(rng.integers(2))],
                    bbox=[x, y, 30, 40],
                    area=900,
                    iscrowd=crowd,
                    keypoints=[
                        value
                        for (u, v), flag in zip(points, flags, strict=True)
                        for value in ((u, v, flag) if flag and not crowd else (0, 0, 0))
                    ],
                    num_keypoints=0 if crowd else sum(flag > 0 for flag in flags),
                )
            )
        cv2.imwrite(str(tmp_path / f'{image_id}.png'), image)
        images.append(dict(id=image_id, file_name=f'{image_id}.png', width=96, height=64))
    categories = [dict(id=5, name='kite'), dict(id=3, name='arrow')]
    path = tmp_path / 'kites.json'
    path.write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories)))
    return path

"""Measures the preflight checks of a COCO json of train2017's size.

python benchmarks/preflight.py [--images 118000] [--boxes 860000] [--polygon-points 30] [--json FILE]

The json is random. Its images are empty files, so that their names are looked up, while headers are not readable. The
times are CPU seconds with the files in the page cache.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from mmengine.config import ConfigDict

from ccop_mm.preflight.class_checks import check_categories
from ccop_mm.preflight.coco_table import CocoTable, paused_garbage_collection
from ccop_mm.preflight.findings import Report
from ccop_mm.preflight.image_checks import FolderListings, check_headers, find_missing
from ccop_mm.preflight.json_checks import check_json, check_segmentations
from ccop_mm.preflight.splits import Split
from ccop_mm.utils.coco_json import read_json
from ccop_mm.utils.file_io import atomic_write

NUM_CLASSES = 80


def write_json(path: Path, num_images: int, num_boxes: int, num_points: int) -> None:
    """Writes a valid json of 640 x 480 images with boxes and polygons at random positions."""
    rng = np.random.default_rng(0)
    sides = rng.uniform(4, 200, (num_boxes, 2))
    corners = rng.random((num_boxes, 2)) * (np.array([640, 480]) - sides)
    image_ids, category_ids = (
        10 + rng.integers(num_images, size=num_boxes),
        1 + rng.integers(NUM_CLASSES, size=num_boxes),
    )
    shape = rng.random((num_points, 2))
    shape[:2] = [[0, 0], [1, 1]]  # so that the polygon is as large as the box
    images = [
        {'id': 10 + number, 'file_name': f'{number:012d}.jpg', 'width': 640, 'height': 480}
        for number in range(num_images)
    ]
    categories = [{'id': number + 1, 'name': f'class {number}'} for number in range(NUM_CLASSES)]
    with atomic_write(path, 'w') as file:
        file.write(f'{{"images": {json.dumps(images)}, "categories": {json.dumps(categories)}, "annotations": [')
        for number, (corner, side) in enumerate(zip(corners, sides, strict=True)):
            annotation = {
                'id': number + 1,
                'image_id': int(image_ids[number]),
                'category_id': int(category_ids[number]),
                'bbox': [*corner.round(2).tolist(), *side.round(2).tolist()],
                'area': float(side.prod().round(2)),
                'iscrowd': 0,
                'segmentation': [(corner + shape * side).round(2).flatten().tolist()],
            }
            file.write(f'{", " if number else ""}{json.dumps(annotation)}')
        file.write(']}')


def measure(path: Path, folder: Path) -> dict[str, float]:
    """Reads and checks the json; returns seconds by step."""
    classes = [f'class {number}' for number in range(NUM_CLASSES)]
    split = Split('train', 'train_dataloader.dataset', ConfigDict(), object)
    report, seconds = Report(), {}
    start = time.process_time()

    def lap(step: str) -> None:
        nonlocal start
        seconds[step] = time.process_time() - start
        start = time.process_time()

    with paused_garbage_collection():
        content = read_json(path)
        lap('read the json')
        table = CocoTable.from_json(content, str(path))
        lap('convert to arrays')
        del content
    lap('free the json')
    check_json(table, report)
    check_categories(table, classes, split, report)
    check_segmentations(table, table.rows_of_classes(classes), 'with_mask=True', report)
    lap('check ids, boxes, areas, masks and classes')
    missing = find_missing(table.file_names, str(folder), FolderListings())
    lap('look up the images')
    assert not report.findings and not missing, [*report.findings, *missing[:3]]
    check_headers(table, str(folder), set(), True, report)
    lap('read the headers of a sample (empty files)')
    return seconds


def main() -> None:
    """Writes the json unless it exists, and prints the times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--images', type=int, default=118_000)
    parser.add_argument('--boxes', type=int, default=860_000)
    parser.add_argument('--polygon-points', type=int, default=30, help='points of each polygon')
    parser.add_argument('--json', type=Path, help='keep the json in this file; an existing one is used again')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        path = args.json or Path(temporary, 'instances.json')
        if not path.is_file():
            write_json(path, args.images, args.boxes, args.polygon_points)
        folder = Path(temporary, 'images')
        folder.mkdir()
        for number in range(args.images):
            (folder / f'{number:012d}.jpg').touch()
        print(f'{args.images:,} images, {args.boxes:,} boxes, {path.stat().st_size / 1e6:.0f} MB')
        seconds = measure(path, folder)
    for step, value in seconds.items():
        print(f'{value:8.2f} s  {step}')
    checks = sum(value for step, value in seconds.items() if 'the json' not in step)
    print(f'{checks:8.2f} s  all checks, without reading and freeing the json')


if __name__ == '__main__':
    main()

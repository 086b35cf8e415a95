"""Training and test of a run, and its metrics."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ccop_mm.label_efficiency.worker import measure

CONTENT = dict(
    images=[dict(id=1, width=64, height=64, file_name='1.jpg'), dict(id=2, width=64, height=64, file_name='2.jpg')],
    annotations=[
        dict(id=1, image_id=1, category_id=3, bbox=[0, 0, 20, 20], area=400, iscrowd=0),
        dict(id=2, image_id=1, category_id=5, bbox=[30, 30, 20, 20], area=400, iscrowd=0),
        dict(id=3, image_id=2, category_id=5, bbox=[5, 5, 40, 40], area=1600, iscrowd=0),
    ],
    categories=[dict(id=3, name='cat'), dict(id=5, name='dog'), dict(id=8, name='horse')],
)
DETECTIONS = [
    dict(image_id=1, category_id=3, bbox=[0, 0, 20, 14], score=0.9),
    dict(image_id=1, category_id=5, bbox=[0, 0, 20, 20], score=0.8),
    dict(image_id=2, category_id=5, bbox=[5, 5, 40, 40], score=0.7),
]


def test_ap_of_each_class(tmp_path):
    (tmp_path / 'truth.json').write_text(json.dumps(CONTENT))
    truth = COCO(tmp_path / 'truth.json')
    evaluation = COCOeval(truth, truth.loadRes(DETECTIONS), 'bbox')
    evaluation.evaluate()
    evaluation.accumulate()
    precision = evaluation.eval['precision'][:, :, :, 0, 2]  # (IoU, recall, class)
    metrics = measure(CONTENT, DETECTIONS)
    assert list(metrics['per_class']) == ['cat', 'dog']  # no horse is annotated
    for number, name in enumerate(('cat', 'dog')):
        assert metrics['per_class'][name]['AP'] == pytest.approx(precision[:, :, number].mean())
        assert metrics['per_class'][name]['AP50'] == pytest.approx(precision[0, :, number].mean())
    assert metrics['per_class']['cat']['AP'] == pytest.approx(0.5)  # IoU 0.7: correct at 0.50 to 0.70
    for name in ('AP', 'AP50', 'AP75'):
        assert metrics[name] == pytest.approx(sum(each[name] for each in metrics['per_class'].values()) / 2)


def test_single_class():
    single = {**CONTENT, 'categories': CONTENT['categories'][:1], 'annotations': CONTENT['annotations'][:1]}
    assert measure(single, DETECTIONS[:1]) == pytest.approx(dict(AP=0.5, AP50=1, AP75=0))
    assert measure(single, []) == dict(AP=0.0, AP50=0.0, AP75=0.0)


PARENT = """
import subprocess, sys, time
code = '''
import os, time
from ccop_mm.label_efficiency.worker import end_with_parent
end_with_parent(os.getppid())
print(os.getpid(), flush=True)
time.sleep(600)
'''
process = subprocess.Popen([sys.executable, '-c', code], start_new_session=True)
time.sleep(600)
"""


@pytest.mark.slow
def test_worker_ends_with_its_parent():
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, sys.path))}
    parent = subprocess.Popen([sys.executable, '-c', PARENT], env=environment, stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    pytest.fail('the worker is running')

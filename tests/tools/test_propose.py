"""The command line of step one."""

import importlib.util
import json
import multiprocessing
import os
import runpy
import signal
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from ccop_mm.proposals import ProposalStore
from ccop_mm.proposals.evaluate import evaluate

TOOL = Path(__file__).resolve().parents[2] / 'tools' / 'propose.py'


@pytest.fixture
def propose_tool(capsys):
    """``propose_tool(*arguments) -> (exit code, stdout, stderr)``."""
    spec = importlib.util.spec_from_file_location('propose_tool', TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)

    def call(*arguments):
        try:
            code = tool.main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code
        return (code, *capsys.readouterr())

    return call


@pytest.fixture
def photos(tmp_path):
    """A folder of 30 small photos, each with one bright rectangle at a place of its own."""
    root = tmp_path / 'photos'
    root.mkdir()
    rng = np.random.default_rng(0)
    for index in range(30):
        image = rng.integers(60, 80, (72, 96, 3)).astype(np.uint8)
        image[20:50, 10 + index : 50 + index] = rng.integers(180, 200, 3)
        cv2.imwrite(str(root / f'{index}.png'), image)
    return root


@pytest.fixture
def annotations(photos):
    """The rectangles of ``photos`` as a COCO json."""
    images = [{'id': i, 'file_name': f'{i}.png', 'height': 72, 'width': 96} for i in range(30)]
    objects = [{'image_id': i, 'bbox': [10 + i, 20, 40, 30]} for i in range(30)]
    path = photos.parent / 'instances.json'
    path.write_text(json.dumps({'images': images, 'annotations': objects}))
    return path


def test_folder_to_file_with_evaluation(propose_tool, photos, annotations, tmp_path):
    out = tmp_path / 'new' / 'x.npz'
    code, stdout, _ = propose_tool(photos, '--out', out, '--workers', 2, '--evaluate', annotations)
    assert code == 0
    store = ProposalStore.load(out)
    assert len(store) == 30
    figures = evaluate(store, annotations)
    assert figures['recall_50'] == 1  # nothing is easier to find than these rectangles
    for name in ('recall_50', 'recall_70', 'mean_best_overlap'):
        assert f'{name:18s} {figures[name]:.3f}\n' in stdout
    assert str(out) in stdout


def test_json_and_options_reach_the_file(propose_tool, photos, annotations, tmp_path):
    options = ('--mode', 'single', '--engine', 'opencv', '--max-boxes', 3, '--min-area', 50)
    options += ('--max-aspect', 4, '--merge-iou', 0.8)
    out = tmp_path / 'x.npz'
    code, *_ = propose_tool(annotations, '--image-root', photos, '--out', out, '--workers', 1, *options)
    assert code == 0
    store = ProposalStore.load(out)
    assert store.image_ids.tolist() == list(range(30))
    assert max(len(store.boxes(image_id)) for image_id in store.image_ids) <= 3
    expected = {'mode': 'single', 'engine': 'opencv', 'max_boxes': 3, 'min_area': 50, 'max_aspect': 4, 'merge_iou': 0.8}
    assert expected.items() <= store.metadata.items()


def test_skipped_photos_decide_the_exit_code(propose_tool, photos, tmp_path):
    for index in range(12):
        (photos / f'bad_{index:02d}.jpg').write_text('not a photo')
    out = tmp_path / 'x.npz'
    code, stdout, _ = propose_tool(photos, '--out', out, '--workers', 1)
    assert code == 1
    assert stdout.count('not a whole image') == 10
    assert '... and 2 more' in stdout
    assert stdout.splitlines()[-1].startswith('exit code 1: 12 photos were skipped')
    assert len(ProposalStore.load(out)) == 30
    assert propose_tool(photos, '--out', out, '--workers', 1, '--skip-bad')[0] == 0


@pytest.mark.parametrize(
    ('source', 'options', 'message'),
    [
        ('nowhere', (), 'does not exist'),
        ('.', (), 'holds no photo'),
        ('nowhere.json', (), 'cannot read'),
        ('photos', ('--evaluate', 'nowhere.json'), 'cannot read'),
        ('photos', ('--max-boxes', 0), 'max_boxes is 0'),
    ],
)
def test_faults_end_in_one_line_and_write_nothing(propose_tool, request, monkeypatch, source, options, message):
    monkeypatch.chdir(request.getfixturevalue('tmp_path'))
    if source == 'photos':
        request.getfixturevalue('photos')
    code, stdout, stderr = propose_tool(source, '--out', 'x.npz', *options)
    assert (code, stdout) == (2, '')
    assert stderr.startswith('error: ') and stderr.count('\n') == 1
    assert message in stderr
    assert not Path('x.npz').exists() and not Path('x.npz.partial').exists()


def run_as_script(arguments, log):
    """What a child process runs; pickled as source, for a child cannot import a test file."""
    return (
        'import runpy, sys\n'
        f'sys.argv = {["propose.py", *map(str, arguments)]!r}\n'
        f'sys.stdout = sys.stderr = open({str(log)!r}, "w")\n'
        f'runpy.run_path({str(TOOL)!r}, run_name="__main__")\n'
    )


def test_ctrl_c_ends_in_one_line_and_the_next_run_goes_on(propose_tool, photos, tmp_path):
    out, partial, log = tmp_path / 'x.npz', tmp_path / 'x.npz.partial', tmp_path / 'log'
    source = run_as_script((photos, '--out', out, '--workers', 1), log)
    child = multiprocessing.get_context('forkserver').Process(target=exec, args=(source, {}))
    child.start()
    end = time.monotonic() + 30
    while not (partial.exists() and partial.read_bytes().count(b'\n') >= 4):
        assert time.monotonic() < end
        time.sleep(0.002)
    os.kill(child.pid, signal.SIGINT)
    child.join()
    assert child.exitcode == 130
    assert not out.exists()
    lines = [line for line in log.read_text().splitlines() if line and not line.startswith('propose:')]
    assert lines == [f'interrupted: finished photos are kept in {partial}; repeat the command to go on']
    code, stdout, _ = propose_tool(photos, '--out', out, '--workers', 1)
    assert code == 0
    assert 'photos were finished before' in stdout


def test_script_shows_its_help():
    with pytest.raises(SystemExit) as stop, pytest.MonkeyPatch.context() as patch:
        patch.setattr('sys.argv', ['propose.py', '--help'])
        runpy.run_path(str(TOOL), run_name='__main__')
    assert stop.value.code == 0

"""The command line of step one."""

import importlib.util
import json
import multiprocessing
import os
import runpy
import shutil
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
    assert (tmp_path / 'new' / 'x_sizes.png').stat().st_size > 5000
    figure = tmp_path / 'sizes.svg'
    code, stdout, _ = propose_tool('evaluate', out, annotations, '--figure', figure)
    assert code == 0 and f'recall_50          {figures["recall_50"]:.3f}\n' in stdout
    assert figure.read_text().startswith('<?xml')


def test_random_boxes_ground_truth_and_lists(propose_tool, photos, annotations, tmp_path):
    out = tmp_path / 'x.npz'
    assert propose_tool(photos, '--out', out, '--workers', 1, '--method', 'random', '--seed', 3)[0] == 0
    assert {'method': 'random', 'seed': 3}.items() <= ProposalStore.load(out).metadata.items()
    assert (
        propose_tool(annotations, '--image-root', photos, '--out', out, '--workers', 1, '--method', 'ground-truth')[0]
        == 0
    )
    assert ProposalStore.load(out).boxes(7).tolist() == [[17, 20, 57, 50]]
    listed = tmp_path / 'list.txt'
    listed.write_text('3.png\n7.png\n')
    options = ('--image-root', photos, '--out', out, '--workers', 1, '--method', 'ground-truth')
    assert propose_tool(listed, *options, '--annotations', annotations)[0] == 0
    assert len(ProposalStore.load(out)) == 2
    code, _, stderr = propose_tool(listed, *options)
    assert code == 2 and 'it needs them' in stderr


def test_shards_are_merged_verified_exported_and_imported(propose_tool, photos, tmp_path):
    parts = [tmp_path / f'{index}.npz' for index in range(3)]
    for index, part in enumerate(parts):
        assert propose_tool(photos, '--out', part, '--workers', 1, '--shard', f'{index}/3')[0] == 0
    code, _, stderr = propose_tool('merge', *parts[:2], '--out', tmp_path / 'x.npz')
    assert code == 2 and '1 of 3 shards are missing: 2/3' in stderr
    code, stdout, _ = propose_tool('merge', *parts, '--out', tmp_path / 'x.npz')
    assert code == 0 and stdout.startswith('30 photos, ')
    assert propose_tool(photos, '--out', tmp_path / 'whole.npz', '--workers', 1)[0] == 0
    content = (tmp_path / 'whole.npz').read_bytes()
    assert (tmp_path / 'x.npz').read_bytes() == content
    assert propose_tool('export', tmp_path / 'x.npz', '--out', tmp_path / 'x.json')[0] == 0
    code, stdout, _ = propose_tool('import', tmp_path / 'x.json', '--out', tmp_path / 'again.npz')
    assert code == 0 and ', selective-search: ' in stdout
    assert (tmp_path / 'again.npz').read_bytes() == content
    code, stdout, _ = propose_tool('verify', tmp_path / 'x.npz', photos, '--again', 2)
    assert code == 0 and 'faults             0' in stdout and '  searched again   2' in stdout
    (photos / '3.png').write_text('no photo any more')
    code, stdout, _ = propose_tool('verify', tmp_path / 'x.npz', photos)
    assert code == 1 and '    3.png: not a whole image' in stdout
    (tmp_path / 'x.npz').write_bytes(content[:-50])
    code, stdout, stderr = propose_tool('verify', tmp_path / 'x.npz', photos)
    assert (code, stdout) == (2, '') and 'was cut short or altered' in stderr


def test_annotations_are_imported_as_what_they_are(propose_tool, annotations, tmp_path):
    out = tmp_path / 'x.npz'
    assert ', ground-truth: ' in propose_tool('import', annotations, '--out', out)[1]
    assert ', imported: ' in propose_tool('import', annotations, '--proposals', '--out', out)[1]


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
        ('photos', ('--shard', '4/3'), 'shard is 4/3'),
        ('photos', ('--method', 'random', '--mode', 'fast'), 'concerns the method selective-search'),
        ('photos', ('--scheduler', 'nonsense'), 'no Dask scheduler answers'),
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
    slow = ('--engine', 'opencv')
    for number in range(300):  # seconds of work: on a busy machine the signal may come late
        shutil.copy(photos / '0.png', photos / f'again_{number}.png')
    source = run_as_script((photos, '--out', out, '--workers', 1, *slow), log)
    # A shell's background jobs ignore it, and hand that on.
    source = f'import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n{source}'
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
    code, stdout, _ = propose_tool(photos, '--out', out, '--workers', 1, *slow)
    assert code == 0
    assert 'photos were finished before' in stdout


def test_script_shows_its_help():
    with pytest.raises(SystemExit) as stop, pytest.MonkeyPatch.context() as patch:
        patch.setattr('sys.argv', ['propose.py', '--help'])
        runpy.run_path(str(TOOL), run_name='__main__')
    assert stop.value.code == 0

"""Command line of tools/propose.py."""

import dataclasses
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest

from ccop_mm.proposals import ProposalSettings, ProposalStore
from ccop_mm.proposals.evaluate import evaluate

TOOL = Path(__file__).resolve().parents[2] / 'tools' / 'propose.py'


@pytest.fixture
def propose_tool(call_tool):
    """``propose_tool(*arguments) -> (exit code, stdout, stderr)``."""
    return partial(call_tool, 'propose.py')


@pytest.fixture
def images(tmp_path):
    """A folder of 30 small images, each with one bright rectangle at a different position."""
    root = tmp_path / 'images'
    root.mkdir()
    rng = np.random.default_rng(0)
    for index in range(30):
        image = rng.integers(60, 80, (72, 96, 3)).astype(np.uint8)
        image[20:50, 10 + index : 50 + index] = rng.integers(180, 200, 3)
        cv2.imwrite(str(root / f'{index}.png'), image)
    return root


@pytest.fixture
def annotations(images):
    """The rectangles of ``images`` as a COCO json."""
    entries = [{'id': i, 'file_name': f'{i}.png', 'height': 72, 'width': 96} for i in range(30)]
    objects = [{'image_id': i, 'bbox': [10 + i, 20, 40, 30]} for i in range(30)]
    path = images.parent / 'instances.json'
    path.write_text(json.dumps({'images': entries, 'annotations': objects}))
    return path


@pytest.mark.slow
def test_folder_is_processed_and_evaluated(propose_tool, images, annotations, tmp_path):
    out = tmp_path / 'new' / 'x.npz'
    code, stdout, _ = propose_tool(images, '--out', out, '--workers', 2, '--evaluate', annotations)
    assert code == 0
    store = ProposalStore.load(out)
    assert len(store) == 30
    results = evaluate(store, annotations)
    assert results['recall_50'] == 1  # the rectangles are easy to find
    for name in ('recall_50', 'recall_70', 'mean_best_overlap'):
        assert f'{name:18s} {results[name]:.3f}\n' in stdout
    assert str(out) in stdout
    assert (tmp_path / 'new' / 'x_sizes.png').stat().st_size > 5000
    figure = tmp_path / 'sizes.svg'
    code, stdout, _ = propose_tool('evaluate', out, annotations, '--figure', figure)
    assert code == 0 and f'recall_50          {results["recall_50"]:.3f}\n' in stdout
    assert figure.read_text().startswith('<?xml')


def test_random_boxes_ground_truth_and_text_files(propose_tool, images, annotations, tmp_path):
    out = tmp_path / 'x.npz'
    assert propose_tool(images, '--out', out, '--workers', 1, '--method', 'random', '--seed', 3)[0] == 0
    assert {'method': 'random', 'seed': 3}.items() <= ProposalStore.load(out).metadata.items()
    options = ('--image-root', images, '--out', out, '--workers', 1, '--method', 'ground-truth', '--overwrite')
    assert propose_tool(annotations, *options)[0] == 0
    assert ProposalStore.load(out).boxes(7).tolist() == [[17, 20, 57, 50]]
    listed = tmp_path / 'list.txt'
    listed.write_text('3.png\n7.png\n')
    assert propose_tool(listed, *options, '--annotations', annotations)[0] == 0
    assert len(ProposalStore.load(out)) == 2
    code, _, stderr = propose_tool(listed, *options)
    assert code == 2 and 'ground-truth' in stderr and stderr.count('\n') == 1


def test_shards_are_merged_verified_exported_and_imported(propose_tool, images, tmp_path):
    parts = [tmp_path / f'{index}.npz' for index in range(3)]
    for index, part in enumerate(parts):
        assert propose_tool(images, '--out', part, '--workers', 1, '--shard', f'{index}/3')[0] == 0
    code, _, stderr = propose_tool('merge', *parts[:2], '--out', tmp_path / 'x.npz')
    assert code == 2 and '2/3' in stderr
    code, stdout, _ = propose_tool('merge', *parts, '--out', tmp_path / 'x.npz')
    assert code == 0 and stdout.startswith('30 images, ')
    assert propose_tool(images, '--out', tmp_path / 'whole.npz', '--workers', 1)[0] == 0
    content = (tmp_path / 'whole.npz').read_bytes()
    assert (tmp_path / 'x.npz').read_bytes() == content
    assert propose_tool('export', tmp_path / 'x.npz', '--out', tmp_path / 'x.json')[0] == 0
    code, stdout, _ = propose_tool('import', tmp_path / 'x.json', '--out', tmp_path / 'again.npz')
    assert code == 0 and ', selective-search: ' in stdout
    assert (tmp_path / 'again.npz').read_bytes() == content
    code, stdout, _ = propose_tool('verify', tmp_path / 'x.npz', images, '--again', 2)
    assert code == 0 and 'problems           0' in stdout and '  regenerated      2' in stdout
    (images / '3.png').write_text('no longer an image')
    code, stdout, _ = propose_tool('verify', tmp_path / 'x.npz', images)
    assert code == 1 and '    3.png: not a whole image' in stdout
    (tmp_path / 'x.npz').write_bytes(content[:-50])
    code, stdout, stderr = propose_tool('verify', tmp_path / 'x.npz', images)
    assert (code, stdout) == (2, '') and str(tmp_path / 'x.npz') in stderr


def test_method_of_imported_annotations(propose_tool, annotations, tmp_path):
    out = tmp_path / 'x.npz'
    assert ', ground-truth: ' in propose_tool('import', annotations, '--out', out)[1]
    assert ', imported: ' in propose_tool('import', annotations, '--proposals', '--out', out)[1]


def test_options_reach_the_file(propose_tool, images, annotations, tmp_path):
    options = ('--mode', 'single', '--engine', 'opencv', '--max-boxes', 3, '--min-area', 50)
    options += ('--max-aspect', 4, '--merge-iou', 0.8)
    out = tmp_path / 'x.npz'
    code, *_ = propose_tool(annotations, '--image-root', images, '--out', out, '--workers', 1, *options)
    assert code == 0
    store = ProposalStore.load(out)
    assert store.image_ids.tolist() == list(range(30))
    assert max(len(store.boxes(image_id)) for image_id in store.image_ids) <= 3
    expected = {'mode': 'single', 'engine': 'opencv', 'max_boxes': 3, 'min_area': 50, 'max_aspect': 4, 'merge_iou': 0.8}
    assert expected.items() <= store.metadata.items()


def test_skipped_images_determine_the_exit_code(propose_tool, images, tmp_path):
    for index in range(12):
        (images / f'bad_{index:02d}.jpg').write_text('not an image')
    out = tmp_path / 'x.npz'
    code, stdout, _ = propose_tool(images, '--out', out, '--workers', 1)
    assert code == 1
    assert stdout.count('not a whole image') == 10
    assert '... and 2 more' in stdout
    assert re.match(r'exit code 1: 12 .*--skip-bad', stdout.splitlines()[-1])
    assert len(ProposalStore.load(out)) == 30
    assert propose_tool(images, '--out', out, '--workers', 1, '--skip-bad')[0] == 0


@pytest.mark.parametrize(
    ('source', 'options', 'message'),
    [
        ('nowhere', (), '/nowhere '),
        ('.', (), '.png'),
        ('nowhere.json', (), '/nowhere.json'),
        ('images', ('--evaluate', 'nowhere.json'), 'nowhere.json'),
        ('images', ('--evaluate', 'instances.json', '--figure', 'x.gif'), 'x.gif'),
        ('images', ('--max-boxes', 0), 'max_boxes must be at least 1, got 0'),
        ('images', ('--workers', 0), 'workers must be at least 1, got 0'),
        ('images', ('--shard', '4/3'), "'4/3'"),
        ('images', ('--method', 'random', '--mode', 'fast'), 'mode '),
        ('images', ('--scheduler', 'nonsense'), 'nonsense'),
    ],
)
def test_errors_are_one_line_and_write_nothing(propose_tool, request, monkeypatch, source, options, message):
    monkeypatch.chdir(request.getfixturevalue('tmp_path'))
    if source == 'images':
        request.getfixturevalue('annotations')
    code, stdout, stderr = propose_tool(source, '--out', 'x.npz', *options)
    assert (code, stdout) == (2, '')
    assert stderr.startswith('error: ') and stderr.count('\n') == 1
    assert message in stderr
    assert not Path('x.npz').exists() and not Path('x.npz.partial').exists()


def run_as_script(arguments, log):
    """Returns the source code that a child process executes, because it cannot import a test file."""
    return (
        'import runpy, sys\n'
        f'sys.argv = {["propose.py", *map(str, arguments)]!r}\n'
        f'sys.stdout = sys.stderr = open({str(log)!r}, "w")\n'
        f'runpy.run_path({str(TOOL)!r}, run_name="__main__")\n'
    )


@pytest.mark.slow
def test_ctrl_c_prints_one_line_and_the_next_run_resumes(propose_tool, images, tmp_path):
    out, partial, log = tmp_path / 'x.npz', tmp_path / 'x.npz.partial', tmp_path / 'log'
    slow = ('--engine', 'opencv')
    for number in range(300):  # seconds of work, because the signal may be late on a busy machine
        shutil.copy(images / '0.png', images / f'again_{number}.png')
    source = run_as_script((images, '--out', out, '--workers', 1, *slow), log)
    # Background jobs of a shell ignore SIGINT, and their children inherit that.
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
    assert len(lines) == 1 and lines[0].startswith('interrupted: ') and str(partial) in lines[0]
    code, stdout, _ = propose_tool(images, '--out', out, '--workers', 1, *slow)
    assert code == 0
    assert re.search(r'\(\d+ images were finished before\)', stdout)


@pytest.mark.parametrize('command', ['', 'generate', 'verify', 'evaluate', 'merge', 'export', 'import'])
def test_every_command_has_a_help_text(propose_tool, command):
    code, stdout, _ = propose_tool(*filter(None, [command, '--help']))
    assert code == 0
    assert stdout.startswith(f'usage: {Path(sys.argv[0]).name}')
    if command in ('', 'generate'):
        names = [field.name.replace('_', '-') for field in dataclasses.fields(ProposalSettings)]
        assert all(f'--{name} ' in stdout for name in names)


def test_generate_is_the_default_command(propose_tool, images, tmp_path):
    for arguments in ((images, '--out'), ('generate', images, '--out'), ('--out',)):
        out = tmp_path / f'{len(arguments)}.npz'
        rest = (images,) if arguments[0] == '--out' else ()
        assert propose_tool(*arguments, out, *rest, '--workers', 1, '--method', 'random')[0] == 0
    assert len({(tmp_path / f'{count}.npz').read_bytes() for count in (1, 2, 3)}) == 1


def test_results_are_imported_with_the_json_of_their_images(propose_tool, annotations, tmp_path):
    results = [{**entry, 'score': 0.5} for entry in json.loads(annotations.read_text())['annotations']]
    (tmp_path / 'results.json').write_text(json.dumps(results))
    for option in ('--images-json', '--photos'):  # codespell:ignore photos
        out = tmp_path / f'{option}.npz'
        code, stdout, _ = propose_tool('import', tmp_path / 'results.json', option, annotations, '--out', out)
        assert code == 0 and stdout.startswith('30 images, 30 boxes, imported: ')
    assert propose_tool('import', tmp_path / 'results.json', '--out', tmp_path / 'x.npz')[0] == 2


@pytest.mark.slow
def test_script_imports_neither_torch_nor_the_openmmlab_packages(images, tmp_path):
    heavy = {'torch', 'mmcv', 'mmengine', 'mmdet', 'mmselfsup', 'matplotlib', 'distributed'}
    code = (
        'import runpy, sys\n'
        f'sys.argv = ["propose.py", {str(images)!r}, "--out", {str(tmp_path / "x.npz")!r}]\n'
        'try:\n'
        f'    runpy.run_path({str(TOOL)!r}, run_name="__main__")\n'
        'except SystemExit as stop:\n'
        '    assert stop.code == 0, stop.code\n'
        f'print(sorted({heavy!r} & set(sys.modules)))\n'
    )
    environment = {name: value for name, value in os.environ.items() if name != 'CCOP_MM_LAZY'}
    environment['PYTHONPATH'] = os.pathsep.join([str(TOOL.parents[1]), os.environ.get('PYTHONPATH', '')])
    done = subprocess.run([sys.executable, '-c', code], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == '[]'
    assert len(ProposalStore.load(tmp_path / 'x.npz')) == 30


@pytest.mark.parametrize(
    ('arguments', 'value'),
    [
        (('images', '--seed', 1), 'seed 0 (now 1)'),
        (('images', '--method', 'ground-truth', '--annotations', 'instances.json'), 'method random (now ground-truth)'),
        (('part', '--method', 'random'), '29 of its 30 '),
        (('more', '--method', 'random'), '1 of the 31 '),
        (('merge', '0.npz', '1.npz'), 'seed 0 (now 1)'),
        (('import', 'instances.json'), 'method random (now ground-truth)'),
    ],
)
def test_finished_files_are_kept_without_overwrite(propose_tool, images, annotations, monkeypatch, arguments, value):
    monkeypatch.chdir(images.parent)
    out = Path('x.npz')
    assert propose_tool('images', '--out', out, '--workers', 1, '--method', 'random')[0] == 0
    for part in range(2):
        shard = ('--shard', f'{part}/2', '--seed', 1, '--method', 'random', '--workers', 1)
        assert propose_tool('images', '--out', f'{part}.npz', *shard)[0] == 0
    Path('part').mkdir()
    shutil.copy(images / '0.png', 'part')
    shutil.copytree(images, 'more')
    shutil.copy(images / '0.png', 'more/new.png')
    arguments = (*arguments, '--out', out, *(() if arguments[0] in ('merge', 'import') else ('--workers', 1)))
    if '--seed' in arguments:
        arguments += ('--method', 'random')
    content = out.read_bytes()
    code, stdout, stderr = propose_tool(*arguments)
    assert (code, stdout) == (2, '')
    assert stderr.startswith('error: x.npz ') and value in stderr and stderr.count('\n') == 1
    assert out.read_bytes() == content and not Path('x.npz.partial').exists()
    assert propose_tool(*arguments, '--overwrite')[0] == 0
    assert out.read_bytes() != content


def test_files_that_are_passed_over_are_counted_by_kind(propose_tool, images, tmp_path, monkeypatch):
    monkeypatch.setattr('ccop_mm.utils.images._can_read_heif', lambda: False)
    jpeg = cv2.imencode('.jpg', cv2.imread(str(images / '0.png')))[1].tobytes()
    folder = tmp_path / 'mixed'
    folder.mkdir()
    for name in ('a.jpg', 'c.jfif', 'e'):
        (folder / name).write_bytes(jpeg)
    for name in ('b.HEIC', 'd.gif'):
        (folder / name).write_bytes(b'\0')
    os.symlink('a.jpg', folder / 'link.jpg')
    code, stdout, _ = propose_tool(folder, '--out', tmp_path / 'x.npz', '--workers', 1, '--method', 'random')
    assert code == 0 and 'images             2\n' in stdout
    (line,) = (line for line in stdout.splitlines() if line.startswith('files passed over'))
    assert all(kind in line for kind in ('1 .heic', '1 .gif', '1 without suffix', '1 linked twice', 'pillow-heif'))


def test_boxes_that_are_not_finite_are_dropped_with_a_count(propose_tool, annotations, tmp_path):
    content = json.loads(annotations.read_text())
    content['annotations'].append({'image_id': 7, 'bbox': [float('nan'), 10, 50, 50]})
    annotations.write_text(json.dumps(content))
    code, stdout, _ = propose_tool('import', annotations, '--out', tmp_path / 'x.npz')
    assert code == 0 and stdout.startswith('30 images, 30 boxes (1 ')
    assert propose_tool('export', tmp_path / 'x.npz', '--out', tmp_path / 'x.json')[0] == 0
    assert len(json.loads((tmp_path / 'x.json').read_text())['annotations']) == 30

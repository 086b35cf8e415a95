import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
import torch
from narrow_config import CONFIG
from PIL import Image
from synthetic_scenes.scenes import write_scenes

from ccop_mm.evaluation import extract_object_features, knn_report, load_model, measure_pointing_accuracy
from ccop_mm.proposals import ProposalStore

ROOT = Path(__file__).resolve().parents[3]
TOOLS = ROOT / 'tools' / 'analysis_tools'


@pytest.fixture
def folder(tmp_path):
    write_scenes(tmp_path, num_train=1, num_val=4, size=(64, 96))
    (tmp_path / 'config.py').write_text(CONFIG)
    return tmp_path


def run(name, *arguments):
    spec = importlib.util.spec_from_file_location(f'analysis_tools_{name}', TOOLS / f'{name}.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    tool.main([str(argument) for argument in arguments])


@pytest.mark.parametrize('directory', [TOOLS.parent, TOOLS, TOOLS.parent / 'misc'], ids=lambda path: path.name)
def test_no_tool_shadows_the_standard_library(directory):
    """The directory of a script is first in ``sys.path``."""
    names = {path.stem for path in directory.iterdir() if path.is_dir() or path.suffix == '.py'}
    assert names and not names & sys.stdlib_module_names


@pytest.mark.parametrize(
    'tool',
    [
        *(path for path in sorted(TOOLS.glob('*.py')) if path.stem != 'probe_arguments'),
        *sorted((TOOLS.parent / 'misc').glob('browse_*.py')),
    ],
    ids=lambda path: path.stem,
)
def test_help_imports_no_heavy_package(tool):
    code = (
        'import runpy, sys\n'
        f'sys.argv = [{str(tool)!r}, "--help"]\n'
        'try:\n'
        f'    runpy.run_path({str(tool)!r}, run_name="__main__")\n'
        'finally:\n'
        '    print({"ccop_mm", "torch", "matplotlib"} & set(sys.modules), file=sys.stderr)\n'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and 'usage:' in done.stdout
    assert done.stderr == 'set()\n'


def test_knn_recall(folder, capsys):
    annotations, images = folder / 'annotations' / 'instances_val.json', folder / 'images'
    options = ('--annotations', annotations, '--images', images, '--size', 64, '--json')
    run('knn_recall', folder / 'config.py', *options, folder / 'random.json', '--seed', 3)
    table = capsys.readouterr().out.splitlines()
    model = load_model(folder / 'config.py', seed=3)
    expected = knn_report(extract_object_features(model, annotations, images, size=64))
    assert json.loads((folder / 'random.json').read_text()) == pytest.approx(expected)
    assert table[2].split() == ['1', *(f'{100 * expected[key]:.1f}' for key in ('backbone@1', 'embedding@1', 'chance'))]

    torch.save({'state_dict': model.state_dict()}, folder / 'model.pth')
    run('knn_recall', folder / 'config.py', folder / 'model.pth', *options, folder / 'loaded.json')
    assert json.loads((folder / 'loaded.json').read_text()) == pytest.approx(expected)


def test_knn_recall_bad_input(folder, capsys):
    with pytest.raises(SystemExit) as caught:
        run('knn_recall', folder / 'config.py', '--annotations', folder / 'absent.json', '--images', folder)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert 'absent.json' in error
    assert error.count('\n') == 1


def test_curriculum(folder, capsys):
    names = sorted(path.name for path in (folder / 'images').iterdir())
    boxes = [[8, 8, 40, 40], [50, 20, 90, 60]]
    ProposalStore([(n, name, (64, 96), boxes) for n, name in enumerate(names)]).save(folder / 'proposals.npz')
    out = folder / 'figure.png'
    arguments = (folder / 'proposals.npz', '--images', folder / 'images', '--out', out)
    run('curriculum', *arguments, '--num', 2)
    output = capsys.readouterr().out
    assert output.startswith('2 ') and str(out) in output
    two = Image.open(out).size
    default = cv2.imread(str(out))
    run('curriculum', *arguments, '--num', 2, '--config', folder / 'config.py')
    assert Image.open(out).size == two
    assert (cv2.imread(str(out)) != default).any()  # another noise range gives other boxes
    run('curriculum', *arguments, '--num', 4, '--progress', 0.2, 0.8)
    assert Image.open(out).size[1] > 2 * two[1]

    with pytest.raises(SystemExit):
        run('curriculum', folder / 'absent.npz', '--images', folder, '--out', out)
    assert 'absent.npz' in capsys.readouterr().err


def options(folder, *more):
    annotations, images = folder / 'annotations' / 'instances_val.json', folder / 'images'
    return ('--annotations', annotations, '--images', images, '--size', 64, *more)


def test_pointing(folder, capsys):
    run('pointing', folder / 'config.py', *options(folder, '--seed', 3, '--json', folder / 'random.json'))
    table = capsys.readouterr().out.splitlines()
    model = load_model(folder / 'config.py', seed=3)
    annotations, images = folder / 'annotations' / 'instances_val.json', folder / 'images'
    expected = measure_pointing_accuracy(model, annotations, images, size=64).report()
    assert json.loads((folder / 'random.json').read_text())['report'] == pytest.approx(expected)
    assert [line.split()[0] for line in table[2:]] == ['C3', 'C4', 'C5', 'P2', 'P3', 'P4', 'P5', 'chance', 'center']
    assert table[2].split()[1] == f'{100 * expected["C3"]:.1f}'

    torch.save({'state_dict': model.state_dict()}, folder / 'model.pth')
    run('pointing', folder / 'config.py', folder / 'model.pth', *options(folder, '--against', folder / 'random.json'))
    rows = capsys.readouterr().out.splitlines()[-7:]
    assert [row.split() for row in rows] == [
        [level, '+0.0', '+0.0', 'to', '+0.0'] for level in ('C3', 'C4', 'C5', 'P2', 'P3', 'P4', 'P5')
    ]


def test_stage_and_fewer_objects(folder):
    run('knn_recall', folder / 'config.py', *options(folder, '--json', folder / 'c5.json'))
    run('knn_recall', folder / 'config.py', *options(folder, '--stage', 'C3', '--json', folder / 'c3.json'))
    run('knn_recall', folder / 'config.py', *options(folder, '--max-objects', 6, '--json', folder / 'six.json'))
    c5, c3, six = (json.loads((folder / f'{name}.json').read_text()) for name in ('c5', 'c3', 'six'))
    assert c3['embedding@5'] == c5['embedding@5'] and c3['backbone@5'] != c5['backbone@5']
    assert 6 <= six['num_objects'] < c5['num_objects']


def test_tsne(folder, capsys):
    run('tsne', folder / 'config.py', *options(folder, '--out', folder / 'a.png', '--perplexity', 3))
    objects = len(json.loads((folder / 'annotations' / 'instances_val.json').read_text())['annotations'])
    output = capsys.readouterr().out
    assert output.startswith(f'{objects} ') and str(folder / 'a.png') in output
    assert Image.open(folder / 'a.png').size[0] == 1432
    with pytest.raises(SystemExit):
        run('tsne', folder / 'config.py', *options(folder, '--out', folder / 'a.gif'))


def test_box_query(folder, capsys):
    run('box_query', folder / 'config.py', *options(folder, '--out', folder / 'a.png', '--num', 2, '--levels', 'C4'))
    output = capsys.readouterr().out
    assert output.startswith('2 ') and str(folder / 'a.png') in output
    assert Image.open(folder / 'a.png').size[0] == 1432
    with pytest.raises(SystemExit):
        run('box_query', folder / 'config.py', *options(folder, '--out', folder / 'b.png', '--num', 0))
    assert 'got 0' in capsys.readouterr().err


def test_training_report_and_curves(folder, capsys):
    log = folder / 'run' / '20260101_000000' / 'vis_data' / 'scalars.json'
    log.parent.mkdir(parents=True)
    log.write_text(''.join(json.dumps(dict(step=n, loss=9 / n, zeta=0.1 * n, beta=0.5)) + '\n' for n in (1, 2, 3)))
    run('training_report', folder / 'run', '--out', folder / 'report.svg')
    output = capsys.readouterr().out
    assert output.startswith('3 ') and str(folder / 'report.svg') in output
    run('curriculum', '--work-dir', folder / 'run', '--out', folder / 'curves.png')
    assert Image.open(folder / 'curves.png').size[0] == 1432
    for bad in (('--work-dir', folder / 'run', 'proposals.npz'), ('proposals.npz',), ()):
        with pytest.raises(SystemExit) as caught:
            run('curriculum', *bad, '--out', folder / 'curves.png')
        assert caught.value.code == 2
        error = capsys.readouterr().err
        assert '--images' in error and '--work-dir' in error

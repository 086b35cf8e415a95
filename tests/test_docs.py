"""The documents' commands: each one parses as it stands, and the first steps of the README run."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmselfsup.registry import DATASETS

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / 'README.md', ROOT / 'CHANGELOG.md', *sorted((ROOT / 'docs').glob('*.md'))]
README = (ROOT / 'README.md').read_text(encoding='utf-8')
LAUNCHERS = ('tools/dist_train.sh', 'tools/slurm_train.sh')


def blocks(text, language):
    """The code blocks of a language."""
    return re.findall(rf'^```{language}\n(.*?)^```', text, re.DOTALL | re.MULTILINE)


def commands(text):
    """Every command line of the bash blocks and of inline code, as lists of words."""
    lines = '\n'.join(blocks(text, 'bash')).replace('\\\n', ' ').splitlines()
    lines += re.findall(r'`((?:python|make|tools/\S+\.sh) [^`]+)`', text)
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def without_settings(words):
    """A command without the environment variables before it and the redirection behind it."""
    while re.match(r'[A-Z_]+=', words[0]):
        words = words[1:]
    return words[: words.index('>')] if '>' in words else words


def parse(script, arguments, monkeypatch):
    """Lets a script parse its arguments, as it would if it were called."""
    assert (ROOT / script).is_file(), script
    spec = importlib.util.spec_from_file_location(f'documented_{Path(script).stem}', ROOT / script)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up
    monkeypatch.syspath_prepend((ROOT / script).parent)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, 'argv', [script, *arguments])
    module.parse_args()


def check(words, monkeypatch):
    """Fails if a command of the documents cannot be what it says."""
    program, *arguments = without_settings(words)
    configs = [word for word in arguments if word.startswith('configs/') and word.endswith('.py')]
    assert all((ROOT / config).is_file() for config in configs), configs
    if program == 'make':
        targets = [word for word in arguments if '=' not in word]
        makefile = (ROOT / 'Makefile').read_text()
        assert targets and all(re.search(rf'^{target}:', makefile, re.MULTILINE) for target in targets)
        settings = [word.partition('=')[0] for word in arguments if '=' in word]
        assert all(re.search(rf'^{setting} \?=', makefile, re.MULTILINE) for setting in settings), settings
    elif program in LAUNCHERS:
        rest = arguments[2:] if program.endswith('dist_train.sh') else arguments[3:]
        parse('tools/train.py', [arguments[0], *rest], monkeypatch)
    elif arguments[:1] == ['-m']:
        assert importlib.util.find_spec(arguments[1]), arguments[1]
    elif program == 'python' and len(arguments) == 1:  # a tool that is named in passing
        assert (ROOT / arguments[0]).is_file(), arguments[0]
    elif program == 'python' and arguments[0] != '-c':
        parse(arguments[0], arguments[1:], monkeypatch)
    else:
        assert program in ('.', 'pip', 'pytest', 'git', 'cd', 'python'), f'{program} is not known to this test'


@pytest.mark.parametrize('document', DOCUMENTS, ids=lambda path: path.name)
def test_commands_parse(document, monkeypatch, capsys):
    for words in commands(document.read_text(encoding='utf-8')):
        try:
            check(words, monkeypatch)
        except SystemExit:
            pytest.fail(f'{document.name}: {shlex.join(words)}\n{capsys.readouterr().err}')


def test_the_commands_of_the_readme_are_found():
    found = commands(README)
    assert ['python', 'tools/propose.py', 'my_photos/', '--out', 'proposals.npz'] in found
    assert ['tools/dist_train.sh', 'my_ccop.py', '8'] in found and ['make', 'demo'] in found


@pytest.mark.parametrize(
    'command',
    [
        'python tools/propose.py photos',
        'python tools/absent.py',
        'python tools/propose.py photos --no-such-option',
        'make absent',
        'make test ABSENT=1',
        'unknown program',
    ]
    + ['tools/dist_train.sh configs/ccop/absent.py 8', 'python -m ccop_mm.absent'],
)
def test_a_wrong_command_is_noticed(command, monkeypatch, capsys):
    with pytest.raises((AssertionError, SystemExit)):
        check(shlex.split(command), monkeypatch)


@pytest.mark.parametrize('document', DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    targets = re.findall(r'\]\((?!https?://|#)([^)#]+)', document.read_text(encoding='utf-8'))
    assert [target for target in targets if not (document.parent / target).exists()] == []


def test_the_first_steps_run_as_written(tmp_path):
    rng = np.random.default_rng(0)
    photos = tmp_path / 'my_photos' / 'holiday'
    photos.mkdir(parents=True)
    for number in range(3):
        photo = np.full((120, 160, 3), 200, np.uint8)
        for _ in range(6):
            x, y = rng.integers(10, 110, 2).tolist()
            cv2.rectangle(photo, (x, y), (x + 40, y + 30), rng.integers(0, 256, 3).tolist(), -1)
        cv2.imwrite(str(photos / f'{number}.jpg'), photo)
    for folder in ('configs', 'tools'):
        (tmp_path / folder).symlink_to(ROOT / folder)
    (snippet,) = (block for block in blocks(README, 'python') if block.startswith('# my_ccop.py'))
    (tmp_path / 'my_ccop.py').write_text(snippet)

    def run(words):
        environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
        command = [sys.executable, *words[1:]]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)

    elsewhere = {'--scheduler', '--shard'}  # these are for many machines
    steps = [words for words in commands(README) if 'my_photos/' in words and not elsewhere & set(words)]
    assert [words[1] for words in steps] == [
        *('tools/propose.py', 'tools/propose.py', 'tools/browse_proposals.py', 'tools/inspect/curriculum.py')
    ]
    for words in steps:
        done = run(words)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / 'curriculum.png').stat().st_size > 10_000

    cfg = Config.fromfile(tmp_path / 'my_ccop.py')
    cfg.train_dataloader.dataset.data_root = f'{tmp_path}/my_photos/'
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        dataset = DATASETS.build(cfg.train_dataloader.dataset)
    assert len(dataset) == 3
    sample = dataset[0]
    assert len(sample['inputs']) == 2 and sample['inputs'][0].shape == (3, 224, 224)

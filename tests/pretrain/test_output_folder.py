"""Which files of an output folder are written, rewritten and kept."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

from ccop_mm.pretrain.output_folder import (
    ARGUMENTS,
    FINETUNE,
    PRETRAIN,
    OutputFolder,
    Request,
    claim_folder,
    resolve_output,
)
from ccop_mm.utils.errors import InputError

REQUEST = Request(
    detector='mmdet::a/b.py',
    images='/data/images',
    image_root=None,
    weights=None,
    epochs='auto',
    view_size=None,
    batch_size=16,
    options={'randomness.seed': 1, 'model.box_jitter.noise': (0.2, 0.8)},
    encoder='digest',
)


def write(folder, pretrain='a = 1\n', finetune='b = 1\n', request=REQUEST):
    return OutputFolder(folder, request).write(pretrain, finetune)


def start(folder):
    """Creates what a pre-training has saved."""
    (folder / 'pretrain').mkdir()
    (folder / 'pretrain' / 'epoch_1.pth').write_bytes(b'')


def contents(folder):
    return (folder / PRETRAIN).read_text(), (folder / FINETUNE).read_text()


def test_configs_are_rewritten_until_the_training_starts(tmp_path):
    folder = tmp_path / 'new' / 'folder'
    assert write(folder) == {PRETRAIN, FINETUNE}
    assert contents(folder) == ('a = 1\n', 'b = 1\n')
    assert write(folder, 'a = 2\n', 'b = 2\n') == {PRETRAIN, FINETUNE}
    assert write(folder, 'a = 3\n', request=replace(REQUEST, batch_size=32)) == {PRETRAIN, FINETUNE}
    assert contents(folder) == ('a = 3\n', 'b = 1\n')
    start(folder)
    assert write(folder, 'a = 4\n', 'b = 4\n', request=replace(REQUEST, batch_size=32)) == set()
    assert contents(folder) == ('a = 3\n', 'b = 1\n')


def test_edited_configs_are_kept(tmp_path):
    write(tmp_path)
    (tmp_path / PRETRAIN).write_text('a = 5\n')
    assert write(tmp_path, 'a = 2\n', 'b = 2\n') == {FINETUNE}
    assert contents(tmp_path) == ('a = 5\n', 'b = 2\n')
    (tmp_path / FINETUNE).write_text('b = 5\n')
    start(tmp_path)
    assert write(tmp_path) == set()
    assert contents(tmp_path) == ('a = 5\n', 'b = 5\n')


def test_missing_configs_are_written_again(tmp_path):
    write(tmp_path)
    start(tmp_path)
    (tmp_path / FINETUNE).unlink()
    assert write(tmp_path, 'a = 2\n', 'b = 2\n') == {FINETUNE}
    assert contents(tmp_path) == ('a = 1\n', 'b = 2\n')


def test_own_files_are_recognized_after_a_kill_between_the_writes(tmp_path, monkeypatch):
    write(tmp_path)
    replaced = []

    def replace_once(source, target):
        if replaced:
            raise KeyboardInterrupt
        replaced.append(target)
        shutil.move(source, target)

    with monkeypatch.context() as patch:
        patch.setattr('ccop_mm.utils.file_io.os.replace', replace_once)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path, 'a = 2\n', 'b = 2\n')
    assert contents(tmp_path) == ('a = 1\n', 'b = 1\n')
    assert write(tmp_path, 'a = 3\n', 'b = 3\n') == {PRETRAIN, FINETUNE}


@pytest.mark.parametrize(
    ('change', 'named'),
    [
        (dict(batch_size=32), 'batch_size=16, now 32'),
        (dict(images='/other'), "images='/data/images', now '/other'"),
        (dict(detector='x.py'), "now 'x.py'"),
        (dict(weights='w.pth'), 'weights=None'),
        (dict(options={}), 'randomness.seed'),
        (dict(encoder='other'), 'backbone'),
    ],
)
@pytest.mark.parametrize('is_started', [False, True])
def test_a_folder_of_another_call_is_refused(tmp_path, change, named, is_started):
    write(tmp_path)
    OutputFolder(tmp_path, replace(REQUEST, **change))  # nothing would be lost
    if is_started:
        start(tmp_path)
    else:
        (tmp_path / PRETRAIN).write_text('a = 5\n')
    with pytest.raises(InputError, match=named) as caught:
        OutputFolder(tmp_path, replace(REQUEST, **change))
    assert '\n' not in str(caught.value)
    OutputFolder(tmp_path, REQUEST)


@pytest.mark.parametrize('name', [PRETRAIN, FINETUNE, 'weights.pth', 'pretrain/epoch_3.pth'])
def test_files_from_elsewhere_are_refused(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text('')
    with pytest.raises(InputError, match=name):
        OutputFolder(tmp_path, REQUEST)


@pytest.mark.parametrize('text', ['', '{}', '[]', '{"arguments": 1, "digests": {}}'])
def test_damaged_arguments_are_refused(tmp_path, text):
    (tmp_path / ARGUMENTS).write_text(text)
    with pytest.raises(InputError, match=ARGUMENTS):
        OutputFolder(tmp_path, REQUEST)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(InputError, match='file'):
        resolve_output(tmp_path / 'file')


@pytest.mark.parametrize('character', ['"', "'", '\\', '\n'])
def test_paths_that_a_config_cannot_contain(tmp_path, character):
    with pytest.raises(InputError) as caught:
        resolve_output(tmp_path / f'a{character}b')
    assert '\n' not in str(caught.value) and '--out' in str(caught.value)


def test_paths_are_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    assert resolve_output('a b/c') == tmp_path / 'a b' / 'c'
    assert resolve_output('~/c') == tmp_path / 'home' / 'c'


def test_a_folder_belongs_to_one_command(tmp_path):
    folder = tmp_path / 'out'
    code = (
        'import sys\nfrom ccop_mm.pretrain.output_folder import claim_folder\n'
        'with claim_folder(sys.argv[1]):\n    print("claimed", flush=True)\n    sys.stdin.read()\n'
    )
    command = [sys.executable, '-c', code, str(folder), '--work-dir']
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == 'claimed\n'
        with pytest.raises(InputError, match=f'process {other.pid}') as caught, claim_folder(folder):
            pass
        other.stdin.close()
        assert other.wait(60) == 0
    assert str(caught.value).endswith('--out')
    assert not folder.exists()
    with claim_folder(folder):
        assert folder.is_dir()


def test_folders_that_cannot_be_created(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(InputError, match='file/out.*--out'), claim_folder(tmp_path / 'file' / 'out'):
        pass


def test_a_run_without_checkpoints_has_started(tmp_path):
    write(tmp_path)
    (tmp_path / 'pretrain' / '2026').mkdir(parents=True)
    output = OutputFolder(tmp_path, REQUEST)
    assert output.is_started and not output.has_checkpoint
    assert write(tmp_path, 'a = 2\n', 'b = 2\n') == set()
    with pytest.raises(InputError, match=f'delete {tmp_path / "pretrain"}'):
        OutputFolder(tmp_path, replace(REQUEST, batch_size=32))


def test_work_dir_of_an_edited_config(tmp_path):
    write(tmp_path)
    (tmp_path / PRETRAIN).write_text(f'work_dir = {str(tmp_path / "elsewhere")!r}\n')
    output = OutputFolder(tmp_path, REQUEST)
    assert output.work_dir == tmp_path / 'elsewhere' and not output.is_started
    (tmp_path / 'elsewhere').mkdir()
    (tmp_path / 'elsewhere' / 'epoch_1.pth').write_bytes(b'')
    assert output.is_started and output.has_checkpoint


def test_a_config_that_is_no_text(tmp_path):
    write(tmp_path)
    for name in (PRETRAIN, FINETUNE):
        (tmp_path / name).write_bytes(b'a = "\xff"\n')
    output = OutputFolder(tmp_path, REQUEST)
    assert output.is_edited(PRETRAIN) and output.is_edited(FINETUNE)
    with pytest.raises(InputError, match=PRETRAIN) as caught:
        _ = output.is_started
    assert '\n' not in str(caught.value)


def test_arguments_of_former_versions(tmp_path):
    write(tmp_path)
    stored = json.loads((tmp_path / ARGUMENTS).read_text())['arguments']
    del stored['num_gpus'], stored['weights_prefix']
    assert REQUEST.describe_difference(stored) == ''
    assert 'num_gpus=1, now 8' in replace(REQUEST, num_gpus=8).describe_difference(stored)


def test_arguments_are_stored_as_text(tmp_path):
    write(tmp_path)
    stored = json.loads((tmp_path / ARGUMENTS).read_text())
    assert stored['arguments']['batch_size'] == 16
    assert REQUEST.describe_difference(stored['arguments']) == ''

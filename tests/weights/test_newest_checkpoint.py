import logging
import os
import pickle
from pathlib import Path

import pytest
import torch
from mmengine.logging import MMLogger

from ccop_mm.utils.errors import InputError
from ccop_mm.weights.newest_checkpoint import find_newest, read_meta


@pytest.fixture
def warnings(caplog):
    """Returns the messages logged at level WARNING."""
    logger = MMLogger.get_instance('find_newest', log_level='INFO')
    logger.addHandler(caplog.handler)
    yield lambda: [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    logger.removeHandler(caplog.handler)


def save(path, age=0):
    generator = torch.Generator().manual_seed(0)
    torch.save(dict(meta=dict(name=path.name), weight=torch.randn(1000, generator=generator)), path)
    os.utime(path, (10**9 - age, 10**9 - age))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-200])


def flip_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b'')


class Payload:
    """Creates a directory when it is unpickled."""

    def __reduce__(self):
        return (os.mkdir, (self.folder,))


def plant_payload(path):
    payload = Payload()
    payload.folder = str(path.parent / 'planted')
    torch.save(dict(meta=dict(seed=payload)), path)


def test_last_checkpoint_comes_first(tmp_path, warnings):
    for name in ('epoch_1.pth', 'epoch_2.pth'):
        save(tmp_path / name)
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_1.pth'))
    assert find_newest(tmp_path) == (str(tmp_path / 'epoch_1.pth'), dict(name='epoch_1.pth'))
    assert warnings() == []


@pytest.mark.parametrize('damage', [truncate, flip_bit, plant_payload, Path.unlink, empty])
def test_unreadable_checkpoint_is_skipped_with_one_warning(tmp_path, warnings, damage):
    for age, name in enumerate(['epoch_10.pth', 'epoch_9.pth', 'epoch_11.pth', 'best_acc_epoch_10.pth']):
        save(tmp_path / name, age)
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_10.pth'))
    damage(tmp_path / 'epoch_10.pth')
    assert find_newest(tmp_path)[0] == str(tmp_path / 'epoch_9.pth')
    (warning,) = warnings()
    assert str(tmp_path / 'epoch_10.pth') in warning and '\n' not in warning
    assert not (tmp_path / 'planted').exists()


@pytest.mark.parametrize('pointer', [None, '', '/of/another/machine/epoch_2.pth'])
def test_without_valid_pointer(tmp_path, pointer):
    if pointer is not None:
        (tmp_path / 'last_checkpoint').write_text(pointer)
    assert find_newest(tmp_path) is None
    for name in ('iter_100.pth', 'iter_20.pth', 'iter_3.pth'):
        save(tmp_path / name)
    assert find_newest(tmp_path)[0] == str(tmp_path / 'iter_100.pth'), 'the number orders files of the same age'


def test_checkpoints_in_another_folder(tmp_path, warnings):
    (tmp_path / 'out').mkdir()
    for name in ('epoch_1.pth', 'epoch_2.pth'):
        save(tmp_path / 'out' / name)
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'out' / 'epoch_2.pth'))
    truncate(tmp_path / 'out' / 'epoch_2.pth')
    assert find_newest(tmp_path)[0] == str(tmp_path / 'out' / 'epoch_1.pth')
    assert len(warnings()) == 1


def test_copied_folder_uses_its_own_checkpoints(tmp_path, warnings):
    original, copied = tmp_path / 'original', tmp_path / 'copied'
    for folder in (original, copied):
        folder.mkdir()
        save(folder / 'epoch_1.pth')
        (folder / 'last_checkpoint').write_text(str(original / 'epoch_1.pth'))
    assert find_newest(copied)[0] == str(copied / 'epoch_1.pth')
    truncate(copied / 'epoch_1.pth')
    assert find_newest(copied) is None and len(warnings()) == 1


def test_file_without_meta_is_rejected(tmp_path):
    torch.save(dict(state_dict={}), tmp_path / 'weights.pth')
    with pytest.raises(InputError, match=r"weights\.pth.*KeyError: 'meta'"):
        read_meta(tmp_path / 'weights.pth')


def test_payload_runs_without_weights_only(tmp_path):
    plant_payload(tmp_path / 'epoch_1.pth')
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / 'epoch_1.pth', weights_only=True)
    torch.load(tmp_path / 'epoch_1.pth', weights_only=False)
    assert (tmp_path / 'planted').is_dir()

import os
import pickle
import pickletools
import re
import zipfile
from urllib.error import URLError

import pytest
import torch
from planted_code import Planted

from ccop_mm.utils.errors import InputError
from ccop_mm.weights import checksum, read_checkpoint, read_state_dict
from ccop_mm.weights.checkpoint_file import write_tensors


@pytest.fixture
def tensors():
    base = torch.arange(24.0).reshape(2, 3, 4)
    return {'a.weight': base[:, :, ::2], 'a.steps': torch.tensor(7), 'b.weight': base.half()}


@pytest.mark.parametrize('name', ['weights.pth', 'weights.pt', 'weights.safetensors'])
def test_round_trip(tensors, tmp_path, name):
    write_tensors(tmp_path / name, tensors, dict(epoch='8', ccop_mm='1'))
    state, meta = read_checkpoint(tmp_path / name)
    assert set(state) == set(tensors)
    assert all(torch.equal(state[key], tensor) and state[key].dtype == tensor.dtype for key, tensor in tensors.items())
    assert (meta['epoch'], meta['checksum']) == ('8', checksum(tensors))


def test_a_torch_file_contains_only_tensors_and_strings(tensors, tmp_path):
    """No type of ccop_mm or mmengine is pickled, so any torch loads the file with ``weights_only=True``."""
    path = tmp_path / 'weights.pth'
    write_tensors(path, tensors, dict(config='model = dict()'))
    with zipfile.ZipFile(path) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith('data.pkl')]
        content = archive.read(name)
    types = {argument for opcode, argument, _ in pickletools.genops(content) if opcode.name == 'GLOBAL'}
    storages = {f'torch {dtype}Storage' for dtype in ('Float', 'Half', 'Long')}
    assert types <= {'torch._utils _rebuild_tensor_v2', 'collections OrderedDict', *storages}
    # A view is saved without the rest of its storage.
    assert path.stat().st_size < 4000


def test_tensors_that_do_not_match_the_checksum_are_an_error(tensors, tmp_path):
    path = tmp_path / 'weights.pth'
    write_tensors(path, tensors, dict(ccop_mm='1'))
    content = torch.load(path, weights_only=True)
    content['state_dict']['a.weight'][0, 0, 0] += 1
    torch.save(content, path)
    with pytest.raises(InputError, match=r'weights\.pth.*checksum'):
        read_checkpoint(path)


def test_an_unknown_suffix_is_an_error(tensors, tmp_path):
    with pytest.raises(InputError, match=r'weights\.pkl.*\.pth, \.pt, \.safetensors'):
        write_tensors(tmp_path / 'weights.pkl', tensors, {})
    assert not list(tmp_path.iterdir())


def test_meta_of_an_official_moco_file(tensors, tmp_path):
    torch.save(dict(epoch=800, arch='resnet50', state_dict=tensors, optimizer={}), tmp_path / 'moco.pth.tar')
    assert read_checkpoint(tmp_path / 'moco.pth.tar')[1] == dict(epoch=800, arch='resnet50')


@pytest.mark.parametrize(
    ('address', 'fetched'),
    [
        ('torchvision://resnet50', 'https://download.pytorch.org/models/resnet50-0676ba61.pth'),
        ('https://host/epoch_800.pth', 'https://host/epoch_800.pth'),
    ],
)
def test_downloads_are_loaded_with_weights_only(tensors, monkeypatch, address, fetched):
    calls = []

    def fetch(url, **options):
        calls.append((url, options['weights_only']))
        return tensors

    monkeypatch.setattr('torch.hub.load_state_dict_from_url', fetch)
    assert set(read_state_dict(address)) == set(tensors)
    assert calls == [(fetched, True)]


def test_failed_download_and_unknown_weights_are_errors(monkeypatch):
    def fail(url, **options):
        raise URLError('no route')

    monkeypatch.setattr('torch.hub.load_state_dict_from_url', fail)
    with pytest.raises(InputError, match='torchvision://resnet50.*no route'):
        read_state_dict('torchvision://resnet50')
    with pytest.raises(InputError, match='torchvision.*resnet51'):
        read_state_dict('torchvision://resnet51')
    with pytest.raises(InputError, match='mmcls://resnet51'):
        read_state_dict('mmcls://resnet51')


def test_checksum_depends_on_names_types_shapes_and_values():
    tensor = torch.arange(6, dtype=torch.float32)
    variants = [{'a': tensor}, {'b': tensor}, {'a': tensor.double()}, {'a': tensor.view(2, 3)}, {'a': tensor + 1}]
    assert len({checksum(variant) for variant in variants}) == len(variants)
    assert checksum({'a': tensor, 'b': tensor + 1}) == checksum({'b': tensor + 1, 'a': tensor})
    assert checksum({'a': torch.arange(12.0)[::2]}) == checksum({'a': torch.arange(12.0)[::2].clone()})


@pytest.mark.parametrize('name', ['absent.pth', 'absent.safetensors'])
def test_a_missing_file_is_an_error(tmp_path, name):
    with pytest.raises(InputError, match=rf'{re.escape(name)}.*tools/train\.py.*model\.init_cfg\.checkpoint'):
        read_state_dict(tmp_path / name)


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_a_truncated_file_is_an_error(tensors, tmp_path, suffix):
    path = tmp_path / f'epoch_800{suffix}'
    write_tensors(path, tensors, {})
    os.truncate(path, os.path.getsize(path) // 2)
    with pytest.raises(InputError, match=rf'epoch_800\{suffix}.*truncated') as caught:
        read_state_dict(path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize('content', [b'', b'GIF89a', b'<html>not found</html>'])
def test_a_file_of_another_type_is_an_error(tmp_path, content):
    path = tmp_path / 'other.pth'
    path.write_bytes(content)
    with pytest.raises(InputError, match=r'other\.pth') as caught:
        read_state_dict(path)
    assert 'lacks the entry' not in str(caught.value)  # a text file makes the unpickler look up a number


@pytest.mark.parametrize(
    ('save', 'reason'),
    [
        (torch.save, r'code \(\w+\.mkdir\)'),
        (lambda content, path: path.write_bytes(pickle.dumps(content, 2)), r'code \(\w+\.mkdir\)'),
        (lambda content, path: path.write_bytes(pickle.dumps(content, 4)), 'damaged'),
    ],
)
@pytest.mark.filterwarnings('ignore:Detected pickle protocol 4')
def test_pickled_code_is_not_executed(tmp_path, save, reason):
    path, marker = tmp_path / 'planted.pth', tmp_path / 'executed'
    save(dict(state_dict={}, meta=Planted(marker)), path)
    with pytest.raises(InputError, match=rf'planted\.pth.*{reason}') as caught:
        read_state_dict(path)
    assert len(str(caught.value).splitlines()) == 1
    assert not marker.exists()

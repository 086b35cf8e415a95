import os
import pickle
import pickletools
import zipfile
from urllib.error import URLError

import pytest
import torch

from ccop_mm.errors import InputError
from ccop_mm.weights import checksum, read_checkpoint, read_state_dict
from ccop_mm.weights.files import write_tensors


@pytest.fixture
def tensors():
    base = torch.arange(24.0).reshape(2, 3, 4)
    return {'a.weight': base[:, :, ::2], 'a.steps': torch.tensor(7), 'b.weight': base.half()}


@pytest.mark.parametrize('name', ['weights.pth', 'weights.pt', 'weights.safetensors'])
def test_what_is_written_is_read(tensors, tmp_path, name):
    write_tensors(tmp_path / name, tensors, dict(epoch='8', ccop_mm='1'))
    state, meta = read_checkpoint(tmp_path / name)
    assert set(state) == set(tensors)
    assert all(torch.equal(state[key], tensor) and state[key].dtype == tensor.dtype for key, tensor in tensors.items())
    assert (meta['epoch'], meta['checksum']) == ('8', checksum(tensors))


def test_a_torch_file_names_nothing_but_tensors(tensors, tmp_path):
    """No object of ours or of mmengine's is pickled: any torch reads the file with its guard on."""
    path = tmp_path / 'weights.pth'
    write_tensors(path, tensors, dict(config='model = dict()'))
    with zipfile.ZipFile(path) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith('data.pkl')]
        content = archive.read(name)
    named = {argument for opcode, argument, _ in pickletools.genops(content) if opcode.name == 'GLOBAL'}
    kinds = {f'torch {kind}Storage' for kind in ('Float', 'Half', 'Long')}
    assert named <= {'torch._utils _rebuild_tensor_v2', 'collections OrderedDict', *kinds}
    # Each tensor brings its own storage: a part of a larger one would bring the whole.
    assert path.stat().st_size < 4000


def test_other_tensors_than_the_checksums_are_refused(tensors, tmp_path):
    path = tmp_path / 'weights.pth'
    write_tensors(path, tensors, dict(ccop_mm='1'))
    content = torch.load(path, weights_only=True)
    content['state_dict']['a.weight'][0, 0, 0] += 1
    torch.save(content, path)
    with pytest.raises(InputError, match=r'weights.pth holds other tensors than its checksum is of'):
        read_checkpoint(path)


def test_a_name_tells_how_to_write(tensors, tmp_path):
    with pytest.raises(InputError, match=r'weights.pkl: the name must end in one of .pth, .pt, .safetensors'):
        write_tensors(tmp_path / 'weights.pkl', tensors, {})
    assert not list(tmp_path.iterdir())


def test_mocos_own_file_tells_its_epoch(tensors, tmp_path):
    torch.save(dict(epoch=800, arch='resnet50', state_dict=tensors, optimizer={}), tmp_path / 'moco.pth.tar')
    assert read_checkpoint(tmp_path / 'moco.pth.tar')[1] == dict(epoch=800, arch='resnet50')


@pytest.mark.parametrize(
    ('address', 'fetched'),
    [
        ('torchvision://resnet50', 'https://download.pytorch.org/models/resnet50-0676ba61.pth'),
        ('https://host/epoch_800.pth', 'https://host/epoch_800.pth'),
    ],
)
def test_addresses_are_read_with_the_guard_on(tensors, monkeypatch, address, fetched):
    calls = []

    def fetch(url, **options):
        calls.append((url, options['weights_only']))
        return tensors

    monkeypatch.setattr('torch.hub.load_state_dict_from_url', fetch)
    assert set(read_state_dict(address)) == set(tensors)
    assert calls == [(fetched, True)]


def test_no_network_and_no_such_weights_are_one_line(monkeypatch):
    def fail(url, **options):
        raise URLError('no route')

    monkeypatch.setattr('torch.hub.load_state_dict_from_url', fail)
    with pytest.raises(InputError, match='torchvision://resnet50 cannot be downloaded .*no route.*name the file'):
        read_state_dict('torchvision://resnet50')
    with pytest.raises(InputError, match='torchvision has no weights resnet51'):
        read_state_dict('torchvision://resnet51')


def test_checksum_tells_names_types_shapes_and_values_apart():
    tensor = torch.arange(6, dtype=torch.float32)
    variants = [{'a': tensor}, {'b': tensor}, {'a': tensor.double()}, {'a': tensor.view(2, 3)}, {'a': tensor + 1}]
    assert len({checksum(variant) for variant in variants}) == len(variants)
    assert checksum({'a': tensor, 'b': tensor + 1}) == checksum({'b': tensor + 1, 'a': tensor})
    assert checksum({'a': torch.arange(12.0)[::2]}) == checksum({'a': torch.arange(12.0)[::2].clone()})


@pytest.mark.parametrize('name', ['absent.pth', 'absent.safetensors'])
def test_an_absent_file_is_named_with_the_cure(tmp_path, name):
    with pytest.raises(InputError, match=r'no checkpoint .*absent\..*tools/train\.py.*model\.init_cfg\.checkpoint'):
        read_state_dict(tmp_path / name)


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_a_truncated_file_is_refused(tensors, tmp_path, suffix):
    path = tmp_path / f'epoch_800{suffix}'
    write_tensors(path, tensors, {})
    os.truncate(path, os.path.getsize(path) // 2)
    with pytest.raises(InputError, match='epoch_800.* is no checkpoint of tensors.*is cut short') as caught:
        read_state_dict(path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize('content', [b'', b'GIF89a', b'<html>not found</html>'])
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    path = tmp_path / 'other.pth'
    path.write_bytes(content)
    with pytest.raises(InputError, match='other.pth is no checkpoint of tensors'):
        read_state_dict(path)


class Planted:
    """Runs a command when it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize(
    ('save', 'fault'),
    [
        (torch.save, r'holds code \(\w+\.mkdir\)'),
        (lambda content, path: path.write_bytes(pickle.dumps(content, 2)), r'holds code \(\w+\.mkdir\)'),
        (lambda content, path: path.write_bytes(pickle.dumps(content, 4)), 'is cut short, damaged or of another kind'),
    ],
)
@pytest.mark.filterwarnings('ignore:Detected pickle protocol 4')
def test_pickled_code_is_refused_and_not_run(tmp_path, save, fault):
    path, trace = tmp_path / 'planted.pth', tmp_path / 'trace'
    save(dict(state_dict={}, meta=Planted(trace)), path)
    with pytest.raises(InputError, match=f'planted.pth is no checkpoint of tensors.*it {fault}') as caught:
        read_state_dict(path)
    assert len(str(caught.value).splitlines()) == 1
    assert not trace.exists()

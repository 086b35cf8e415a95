"""Names of initial weights, and the initializers that fit their files."""

import pytest
import small_ccop
import torch
from foreign_states import rename_encoder
from mmengine.registry import MODELS, DefaultScope

from ccop_mm.label_efficiency.weights import choose_initializer, read_weights
from ccop_mm.utils.errors import InputError


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Checkpoints: of CCOP, of its backbone with torchvision's keys, and of a detector."""
    folder = tmp_path_factory.mktemp('weights')
    with DefaultScope.overwrite_default_scope('mmselfsup'):
        state = MODELS.build(small_ccop.config()).state_dict()
    encoder = {key: tensor for key, tensor in state.items() if key.startswith(('backbone.', 'neck.'))}
    states = dict(
        ccop=state,
        moco=rename_encoder(state, 'torchvision', fpn=False),
        detector={**encoder, 'bbox_head.conv.weight': torch.zeros(1)},
    )
    for name, content in states.items():
        torch.save(dict(state_dict=content), folder / f'{name}.pth')
    return folder


@pytest.mark.parametrize(
    ('name', 'initializer'),
    [('ccop', 'CCOPPretrained'), ('moco', 'BackbonePretrained'), ('detector', 'EncoderPretrained')],
)
def test_content_decides_on_the_initializer(name, initializer, files):
    assert choose_initializer(str(files / f'{name}.pth')) == initializer


def test_weights(files):
    random, own, other, file = read_weights(['random', 'imagenet=init_cfg', 'r.2=random', f'ccop={files / "ccop.pth"}'])
    assert (random.name, random.source, random.init_cfg(0)) == ('random', 'random', None)
    assert (own.name, own.source, own.init_cfg(0)) == ('imagenet', 'init_cfg', None)
    assert (other.name, other.source) == ('r.2', 'random')
    assert file.init_cfg(3) == dict(type='CCOPPretrained', checkpoint=str(files / 'ccop.pth'))
    assert len({file.digest, read_weights([f'a={files / "moco.pth"}'])[0].digest, ''}) == 3
    assert 'CCOPPretrained' in file.describe() and str(files / 'ccop.pth') in file.describe()


def test_a_file_per_seed(files, tmp_path):
    for seed, source in ((4, 'ccop'), (7, 'ccop'), (8, 'moco')):
        (tmp_path / f'{seed}.pth').write_bytes((files / f'{source}.pth').read_bytes())
    (weights,) = read_weights([f'ccop={tmp_path}/{{seed}}.pth'], [4, 7])
    assert [weights.init_cfg(seed)['checkpoint'] for seed in (4, 7)] == [f'{tmp_path}/4.pth', f'{tmp_path}/7.pth']
    assert weights.digest == '' and [seed for seed, _ in weights.digests] == [4, 7]
    with pytest.raises(InputError, match=r'5\.pth'):
        read_weights([f'ccop={tmp_path}/{{seed}}.pth'], [4, 5])
    with pytest.raises(InputError, match='backbone and neck.*backbone'):
        read_weights([f'ccop={tmp_path}/{{seed}}.pth'], [4, 8])


@pytest.mark.parametrize(
    ('arguments', 'named'),
    [
        ([], '--weights'),
        (['weights.pth'], 'weights.pth'),
        (['a='], 'a='),
        (['a/b=random'], 'a/b'),
        (['-x=random'], '-x'),
        (['a=random', 'a=init_cfg'], 'a'),
        (['a=absent.pth'], 'absent.pth'),
    ],
)
def test_invalid_arguments(arguments, named):
    with pytest.raises(InputError, match=named):
        read_weights(arguments)

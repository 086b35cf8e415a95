"""The state of a CCOP pre-training under the keys of other formats, with what else their files hold."""

import torch

from ccop_mm.weights.formats import TARGETS


def renamed(state, target, prefix='', fpn=True):
    """The encoder of a CCOP checkpoint under other names."""
    return {
        f'{prefix}{TARGETS[target](key)}': tensor
        for key, tensor in state.items()
        if key.startswith(('backbone.', 'neck.') if fpn else 'backbone.')
    }


def release(state):
    """The keys that the authors' algorithm registers, by openselfsup/models/ccop.py of their release."""
    names = {key.replace('backbone.', 'backbone_q.', 1): value for key, value in renamed(state, 'detectron2').items()}
    names.update({key.replace('backbone_q.', 'backbone_k.'): value + 1 for key, value in names.items()})
    for part in ('img', 'roi'):
        for side in 'qk':
            for layer in ('linear_1.0', 'last_linear'):
                names.update({f'{part}_neck_{side}.mlp.{layer}.{kind}': torch.zeros(2) for kind in ('weight', 'bias')})
        names[f'{part}_queue'], names[f'{part}_queue_ptr'] = torch.zeros(4, 8), torch.zeros(1, dtype=torch.long)
    return {**names, 'pixel_mean': torch.ones(3, 1, 1), 'pixel_std': torch.ones(3, 1, 1), 'iter': torch.zeros(1)}


def moco(state):
    """MoCo v2's official file, as main_moco.py saves it: DDP's prefix, two encoders, a queue."""
    names = renamed(state, 'torchvision', 'module.encoder_q.', fpn=False)
    names.update(
        {f'module.encoder_q.fc.{layer}.{kind}': torch.ones(2) for layer in '02' for kind in ('weight', 'bias')}
    )
    names.update({key.replace('encoder_q', 'encoder_k'): value + 1 for key, value in names.items()})
    return {**names, 'module.queue': torch.zeros(4, 8), 'module.queue_ptr': torch.zeros(1)}


def mmselfsup_moco(state):
    names = renamed(state, 'mmdet', fpn=False)
    projection = {f'neck.mlp.{layer}.{kind}': torch.ones(2) for layer in '02' for kind in ('weight', 'bias')}
    momentum = {f'encoder_k.module.0.{key.removeprefix("backbone.")}': value + 1 for key, value in names.items()}
    return {**names, **projection, **momentum, 'encoder_k.steps': torch.tensor(3), 'queue': torch.zeros(1)}


FOREIGN = {
    'ccop-release': release,
    'detectron2': lambda state: renamed(state, 'detectron2'),
    'mocov2': moco,
    'mmselfsup-moco': mmselfsup_moco,
    'mmdet': dict,
    'torchvision': lambda state: {**renamed(state, 'torchvision', fpn=False), 'fc.weight': torch.zeros(2)},
}

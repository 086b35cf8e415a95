"""State dicts of other formats, made from the state of a CCOP pre-training."""

from collections.abc import Callable

import torch
from torch import Tensor

from ccop_mm.weights.formats import TARGETS

State = dict[str, Tensor]


def rename_encoder(state: State, target: str, prefix: str = '', fpn: bool = True) -> State:
    """Returns the encoder of a CCOP checkpoint with the keys of another format.

    Args:
        state (dict[str, Tensor]): State of a CCOP pre-training.
        target (str): Key of ``TARGETS``.
        prefix (str): Prepended to all keys.
        fpn (bool): Whether to include the FPN.
    """
    return {
        f'{prefix}{TARGETS[target](key)}': tensor
        for key, tensor in state.items()
        if key.startswith(('backbone.', 'neck.') if fpn else 'backbone.')
    }


def release_state(state: State) -> State:
    """Returns the keys that openselfsup/models/ccop.py in the CCOP authors' release registers."""
    encoder = rename_encoder(state, 'detectron2')
    keys = {key.replace('backbone.', 'backbone_q.', 1): value for key, value in encoder.items()}
    keys.update({key.replace('backbone_q.', 'backbone_k.'): value + 1 for key, value in keys.items()})
    for part in ('img', 'roi'):
        for side in 'qk':
            for layer in ('linear_1.0', 'last_linear'):
                keys.update({f'{part}_neck_{side}.mlp.{layer}.{kind}': torch.zeros(2) for kind in ('weight', 'bias')})
        keys[f'{part}_queue'], keys[f'{part}_queue_ptr'] = torch.zeros(4, 8), torch.zeros(1, dtype=torch.long)
    return {**keys, 'pixel_mean': torch.ones(3, 1, 1), 'pixel_std': torch.ones(3, 1, 1), 'iter': torch.zeros(1)}


def moco_state(state: State) -> State:
    """Returns the keys that main_moco.py of the official MoCo v2 saves: DDP prefix, two encoders and a queue."""
    keys = rename_encoder(state, 'torchvision', 'module.encoder_q.', fpn=False)
    keys.update({f'module.encoder_q.fc.{layer}.{kind}': torch.ones(2) for layer in '02' for kind in ('weight', 'bias')})
    keys.update({key.replace('encoder_q', 'encoder_k'): value + 1 for key, value in keys.items()})
    return {**keys, 'module.queue': torch.zeros(4, 8), 'module.queue_ptr': torch.zeros(1)}


def mmselfsup_moco_state(state: State) -> State:
    """Returns the keys of mmselfsup's MoCo."""
    keys = rename_encoder(state, 'ccop', fpn=False)
    projection = {f'neck.mlp.{layer}.{kind}': torch.ones(2) for layer in '02' for kind in ('weight', 'bias')}
    momentum = {f'encoder_k.module.0.{key.removeprefix("backbone.")}': value + 1 for key, value in keys.items()}
    return {**keys, **projection, **momentum, 'encoder_k.steps': torch.tensor(3), 'queue': torch.zeros(1)}


def mmselfsup_siamese_state(state: State) -> State:
    """Returns the keys of mmselfsup's BYOL, which include those of SimCLR and SimSiam."""
    keys = rename_encoder(state, 'ccop', fpn=False)
    layers = ('fc0.weight', 'bn0.weight', 'bn0.running_mean', 'fc1.weight')
    projector = {f'neck.{layer}': torch.ones(2) for layer in layers}
    predictor = {f'head.predictor.{layer}': torch.ones(2) for layer in layers}
    average = {f'target_net.module.0.{key.removeprefix("backbone.")}': value + 1 for key, value in keys.items()}
    return {**keys, **projector, **predictor, **average, 'target_net.steps': torch.tensor(3)}


def torchvision_state(state: State) -> State:
    """Returns the keys of a torchvision ResNet with its classifier."""
    return {**rename_encoder(state, 'torchvision', fpn=False), 'fc.weight': torch.zeros(2)}


#: Format -> function that converts the state of a CCOP pre-training.
STATES: dict[str, Callable[[State], State]] = {
    'ccop-release': release_state,
    'detectron2': lambda state: rename_encoder(state, 'detectron2'),
    'mocov2': moco_state,
    'mmselfsup-moco': mmselfsup_moco_state,
    'mmselfsup-siamese': mmselfsup_siamese_state,
    'ccop': dict,
    'torchvision': torchvision_state,
}

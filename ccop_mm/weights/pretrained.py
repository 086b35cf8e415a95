"""Pre-trained weights into a detector, key by key."""

import hashlib
import re

import torch
from mmdet.models import FPN, ResNet
from mmengine.logging import print_log
from mmengine.model import update_init_info
from mmengine.registry import WEIGHT_INITIALIZERS
from mmengine.runner import CheckpointLoader

from ccop_mm.errors import InputError
from ccop_mm.weights.keys import check_pretraining, pair_keys, shapes, strip_wrappers


def read_state_dict(path):
    """Reads the tensors of a checkpoint onto the CPU.

    Args:
        path (str): File or URL of a checkpoint with a ``state_dict``, or of a bare state dict.

    Returns:
        dict[str, Tensor]: Name -> tensor.

    Raises:
        InputError: The file is absent, damaged, no checkpoint, or holds pickled code.
    """
    try:
        checkpoint = CheckpointLoader.load_checkpoint(str(path), map_location='cpu', logger='silent')
    except FileNotFoundError as error:
        raise InputError(
            f'no checkpoint {path}: pre-train first (python tools/train.py configs/ccop/CONFIG.py), '
            'or name another file (--cfg-options model.init_cfg.checkpoint=FILE)'
        ) from error
    except Exception as error:  # there is hardly one that unpickling a damaged file does not raise
        code = re.search(r'GLOBAL (\S+)', str(error))  # torch's name for what it refused
        damage = f'is cut short, damaged or of another kind ({type(error).__name__})'
        fault = f'holds code ({code[1]})' if code else damage
        raise InputError(f'{path} is no checkpoint of tensors and was not loaded: it {fault}') from error
    state = checkpoint.get('state_dict', checkpoint) if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise InputError(f'{path} holds no state dict: name a checkpoint that tools/train.py wrote')
    return state


def checksum(state):
    """A short blake2b over names, types, shapes and values, in the order of the names.

    Args:
        state (Mapping[str, Tensor]): Tensors on any device.

    Returns:
        str: 16 hexadecimal digits.
    """
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f'{name} {tensor.dtype} {tuple(tensor.shape)}\n'.encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


@WEIGHT_INITIALIZERS.register_module()
class CCOPPretrained:
    """Loads backbone and FPN of a detector from a CCOP checkpoint, completely or not at all.

    For the ``init_cfg`` of a whole mmdet detector with a ResNet and an FPN::

        model = dict(init_cfg=dict(type='CCOPPretrained', checkpoint=FILE))

    Running statistics are loaded like weights; BN and SyncBN have equal keys. A detector whose FPN starts at C3, as
    RetinaNet's, takes the pre-trained levels from C3 on; :func:`ccop_mm.weights.keys.pair_keys` tells what may be
    missing or unused. One line of the log gives the number of keys and parameters and the :func:`checksum` of the
    loaded tensors, read back from the detector, under the checkpoint's names. In a list of initializers this one stands
    last, for mmengine applies them in order.

    Args:
        checkpoint (str): File or URL of a CCOP pre-training checkpoint.
    """

    def __init__(self, checkpoint):
        self.checkpoint = checkpoint

    def __call__(self, module):
        """Initializes ``module``.

        Args:
            module (nn.Module): A detector.

        Raises:
            InputError: ``module`` has no ResNet with an FPN, or the checkpoint cannot be read, or does not fit.
        """
        backbone, neck = getattr(module, 'backbone', None), getattr(module, 'neck', None)
        if not isinstance(backbone, ResNet) or not isinstance(neck, FPN):
            raise InputError(
                f'CCOPPretrained is for a detector with a ResNet and an FPN, not for {type(module).__name__}: '
                "write model=dict(init_cfg=dict(type='CCOPPretrained', ...)), not in the backbone or the neck"
            )
        state = read_state_dict(self.checkpoint)
        first_level = backbone.out_indices[neck.start_level]
        try:
            state = strip_wrappers(state)
            check_pretraining(state)
            pairs = pair_keys(shapes(module.state_dict()), shapes(state), first_level, len(neck.lateral_convs))
        except InputError as error:
            raise InputError(f'{self.checkpoint}: {error}') from None
        # After a parent's initializer mmengine lets the children draw their weights (its own Pretrained alone waits),
        # unless they say that they are initialized. The neck draws now: its extra convolutions have no source.
        neck.init_weights()
        backbone.is_init = True
        module.load_state_dict({key: state[source] for key, source in pairs.items()}, strict=False)
        if hasattr(module, '_params_init_info'):
            update_init_info(module, f'CCOPPretrained: loaded from {self.checkpoint}')
        self._log(module, pairs, first_level)

    def _log(self, module, pairs, first_level):
        """Says what the detector now holds, read back from it."""
        held = module.state_dict()
        loaded = {source: held[key] for key, source in pairs.items()}
        parameters = sum(value.numel() for key, value in module.named_parameters() if key in pairs)
        shift = f', its FPN from the pre-trained P{first_level + 2} on' if first_level else ''
        print_log(
            f'CCOPPretrained: {len(pairs)} backbone and FPN keys ({parameters:,} parameters, '
            f'blake2b {checksum(loaded)}) loaded from {self.checkpoint} into {type(module).__name__}{shift}',
            logger='current',
        )

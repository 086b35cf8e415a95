"""Initializers that load pre-trained weights into a detector of mmdet, key by key."""

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

from mmengine.logging import print_log
from mmengine.model import update_init_info
from mmengine.registry import WEIGHT_INITIALIZERS
from torch import Tensor, nn

from ccop_mm.utils.encoder_graph import find_without_influence, select_untrained
from ccop_mm.utils.errors import InputError
from ccop_mm.utils.text import format_truncated
from ccop_mm.weights.checkpoint_file import checksum
from ccop_mm.weights.encoder_checkpoint import read_encoder
from ccop_mm.weights.key_mapping import PARTS, has_neck, shapes
from ccop_mm.weights.pairing import Pairing, pair_keys

Select = Callable[[frozenset[str]], Collection[str]]


class EncoderInit:
    """Base class of the initializers of backbone and neck, which load either all tensors of their parts or none.

    Args:
        checkpoint (str): File, ``https://`` URL or name of a checkpoint.
    """

    def __init__(self, checkpoint: str) -> None:
        self.checkpoint = checkpoint

    def _check(self, module: nn.Module) -> None:
        """Checks the place of the initializer in the config, and the type of its argument.

        Raises:
            InputError: ``module`` has no backbone, the path is not a string, or another initializer follows.
        """
        name = type(self).__name__
        if not isinstance(getattr(module, 'backbone', None), nn.Module):
            raise InputError(
                f'{name} initializes a model with a backbone, not {type(module).__name__}: '
                f"write model=dict(init_cfg=dict(type='{name}', ...)), not in the backbone or the neck"
            )
        if not isinstance(self.checkpoint, str):
            raise InputError(
                f'{name} needs the path of a checkpoint, got {self.checkpoint!r}: set model.init_cfg.checkpoint'
            )
        init_cfg = getattr(module, 'init_cfg', None)
        others = [_type_name(item) for item in init_cfg] if isinstance(init_cfg, (list, tuple)) else []
        # mmengine applies initializers in order, and its own Pretrained after all others.
        if name in others and ('Pretrained' in others or others[-1] != name):
            raise InputError(
                f'model.init_cfg applies another initializer after {name}: {name} must be the last, without Pretrained'
            )

    def _load(
        self, module: nn.Module, state: Mapping[str, Tensor], keys: Collection[str], select_optional: Select
    ) -> str:
        """Loads tensors into backbone and neck.

        Args:
            module (nn.Module): Model with a backbone, and a neck if ``keys`` include one.
            state (Mapping[str, Tensor]): Tensors with mmdet's keys.
            keys (Collection[str]): Tensors of the model that are to be loaded.
            select_optional (Callable): See :func:`ccop_mm.weights.pairing.pair_keys`.

        Returns:
            str: Line for the log with the number of keys and parameters, the checksum, computed from the tensors of the
            model, and what keeps its initialization.
        """
        tensors = encoder_tensors(module)
        own = {key: shape for key, shape in shapes(tensors).items() if key in keys}
        arguments = {
            part: _argument_names(child)
            for part in ('backbone', 'neck')
            if isinstance(child := getattr(module, part, None), nn.Module)
        }
        try:
            pairing = pair_keys(own, shapes(state), select_optional, arguments)
        except InputError as error:
            raise InputError(f'{self.checkpoint}: {error}') from None
        # mmengine initializes the children after their parent, except for its own Pretrained, and would overwrite the
        # weights. The neck is initialized here because some of its tensors may have no source; the backbone is only
        # marked as initialized.
        neck: Any = getattr(module, 'neck', None)
        if neck is not None:
            if hasattr(neck, 'init_weights') and not getattr(neck, 'is_init', False):
                neck.init_weights()
            neck.is_init = True  # not all necks with their own init_weights set it
        backbone: Any = module.backbone
        backbone.is_init = True
        for part in PARTS:
            loaded = {
                key.removeprefix(part): state[source] for key, source in pairing.sources.items() if key.startswith(part)
            }
            if loaded:
                getattr(module, part[:-1]).load_state_dict(loaded, strict=False)
        if hasattr(module, '_params_init_info'):
            update_init_info(module, f'{type(self).__name__}: loaded from {self.checkpoint}')
        return self._describe(module, pairing)

    def _describe(self, module: nn.Module, pairing: Pairing) -> str:
        tensors = encoder_tensors(module)
        loaded = {source: tensors[key] for key, source in pairing.sources.items()}
        parameters = sum(value.numel() for key, value in module.named_parameters() if key in pairing.sources)
        parts = ' and '.join(part[:-1] for part in PARTS if any(key.startswith(part) for key in pairing.sources))
        shift = f', FPN levels from the pre-trained P{pairing.first_level + 2} upward' if pairing.first_level else ''
        kept = (
            f', not in the file and as initialized: {_describe_modules(pairing.kept, tensors)}' if pairing.kept else ''
        )
        return (
            f'{type(self).__name__}: {len(loaded)} {parts} keys ({parameters:,} parameters, blake2b '
            f'{checksum(loaded)}) loaded from {self.checkpoint} into {type(module).__name__}{shift}{kept}'
        )


@WEIGHT_INITIALIZERS.register_module()
class CCOPPretrained(EncoderInit):
    """Loads backbone and neck of a detector from a CCOP checkpoint, either completely or not at all.

    For the ``init_cfg`` of any mmdet detector with a backbone and a neck::

        model = dict(init_cfg=dict(type='CCOPPretrained', checkpoint=FILE))

    Names and shapes of all tensors must be equal. Running statistics are loaded like weights; BN and SyncBN have the
    same keys. A detector whose FPN starts at C3, such as RetinaNet, uses the levels from C3 upward of a checkpoint
    whose FPN starts at C2 (:func:`ccop_mm.weights.pairing.pair_keys`). Pre-training leaves out the tensors of levels
    that are too coarse for its views, such as P6 and P7; these, and no others, keep the initialization of the detector
    (:func:`ccop_mm.utils.encoder_graph.find_without_influence`), and the log names them. One log line states the number
    of loaded keys and parameters and the :func:`~ccop_mm.weights.checkpoint_file.checksum` of the loaded tensors, read
    back from the detector, under the keys of the checkpoint. In a list of initializers this one must be the last,
    because mmengine applies them in order.

    Args:
        checkpoint (str): File or URL of a CCOP pre-training checkpoint, of an export of one by
            tools/model_converters/export_checkpoint.py, or of the CCOP authors' release.
    """

    def __call__(self, module: nn.Module) -> None:
        """Initializes a detector.

        Args:
            module (nn.Module): Detector.

        Raises:
            InputError: ``module`` has no backbone or no neck, or the checkpoint cannot be read or does not match.
        """
        self._check(module)
        backbone: Any = module.backbone
        neck = getattr(module, 'neck', None)
        if not isinstance(neck, nn.Module):
            raise InputError(
                f'{type(module).__name__} has no neck, and CCOPPretrained loads a backbone and a neck: use a detector '
                'with a neck'
            )
        encoder = read_encoder(self.checkpoint)
        if not has_neck(encoder.tensors):
            raise InputError(
                f'{self.checkpoint} contains a backbone without a neck such as an FPN (format: {encoder.title}): '
                "to load only the backbone use init_cfg=dict(type='BackbonePretrained', ...)"
            )

        def select_optional(missing: frozenset[str]) -> frozenset[str]:
            return select_untrained(missing, find_without_influence(backbone, neck))

        print_log(self._load(module, encoder.tensors, encoder_tensors(module), select_optional), logger='current')


@WEIGHT_INITIALIZERS.register_module()
class BackbonePretrained(EncoderInit):
    """Loads the backbone of a detector from a checkpoint without a neck, either completely or not at all.

    For the ``init_cfg`` of an mmdet detector::

        model = dict(init_cfg=dict(type='BackbonePretrained', checkpoint='torchvision://resnet50'))

    In contrast, mmengine's ``Pretrained`` loads the keys that match and ignores the others. Supports ResNets of
    torchvision and timm, the files of MoCo v2, mmselfsup's MoCo, and the output of
    tools/model_converters/import_checkpoint.py. Only the classifier (``fc``), projection heads, key encoder and queues
    are dropped. Neck and heads keep their own initialization. The log line is that of :class:`CCOPPretrained`.

    Args:
        checkpoint (str): File, ``https://`` URL or ``torchvision://`` name.
    """

    def __call__(self, module: nn.Module) -> None:
        """Initializes a detector.

        Args:
            module (nn.Module): Detector.

        Raises:
            InputError: ``module`` has no backbone, or the checkpoint cannot be read, does not match, or contains a
                neck.
        """
        self._check(module)
        encoder = read_encoder(self.checkpoint)
        if has_neck(encoder.tensors):
            raise InputError(
                f"{self.checkpoint} also contains a neck (FPN): use init_cfg=dict(type='CCOPPretrained', ...), or "
                'extract the backbone with tools/model_converters/export_checkpoint.py --to torchvision'
            )
        keys = [key for key in encoder_tensors(module) if key.startswith(PARTS[0])]
        print_log(self._load(module, encoder.tensors, keys, lambda missing: ()), logger='current')


def encoder_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Returns all tensors of backbone and neck, if present, with the prefixes ``backbone.`` and ``neck.``.

    In contrast to the state dict of CCOP, these include tensors that are not trained.
    """
    children = {part: getattr(module, part[:-1], None) for part in PARTS}
    return {
        f'{part}{key}': tensor
        for part, child in children.items()
        if isinstance(child, nn.Module)
        for key, tensor in child.state_dict().items()
        if isinstance(tensor, Tensor)
    }


def _describe_modules(kept: Collection[str], keys: Collection[str]) -> str:
    """Lists the outermost modules of which no tensor was loaded, such as ``neck.fpn_convs.3``.

    Args:
        kept (Collection[str]): Keys that were not loaded.
        keys (Collection[str]): All keys.
    """
    kept, modules = frozenset(kept), []
    for key in sorted(kept):
        components = key.split('.')
        paths = ('.'.join(components[:number]) for number in range(2, len(components)))
        inside = ((path, (other for other in keys if other.startswith(f'{path}.'))) for path in paths)
        modules.append(next((path for path, others in inside if kept.issuperset(others)), key))
    return format_truncated(list(dict.fromkeys(modules)), 6)


def _argument_names(module: nn.Module) -> frozenset[str]:
    """Returns the names of the constructor's arguments of a module's class and its base classes."""
    if isinstance(module, nn.Sequential):  # a chain of necks
        return frozenset().union(*map(_argument_names, module))
    constructors = [vars(kind)['__init__'] for kind in type(module).__mro__[:-1] if '__init__' in vars(kind)]
    return frozenset(name for constructor in constructors for name in inspect.signature(constructor).parameters)


def _type_name(init_cfg: Mapping[str, Any]) -> str:
    kind = init_cfg.get('type')
    return str(getattr(kind, '__name__', kind)).rpartition('.')[2].removesuffix('Init')

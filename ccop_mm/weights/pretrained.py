"""Initializers that load pre-trained weights into a detector of mmdet, key by key."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmdet.models import FPN, ResNet
from mmengine.logging import print_log
from mmengine.model import update_init_info
from mmengine.registry import WEIGHT_INITIALIZERS
from torch import Tensor, nn

from ccop_mm.utils.errors import InputError
from ccop_mm.weights.checkpoint_file import checksum, read_checkpoint
from ccop_mm.weights.formats import FOREIGN_FORMATS, convert_foreign, detect_foreign_format
from ccop_mm.weights.key_mapping import PARTS, has_fpn, pair_keys, select_encoder, shapes, strip_wrappers
from ccop_mm.weights.model_fit import check_finite


@dataclass(frozen=True)
class EncoderCheckpoint:
    """Backbone, and FPN if present, of a checkpoint.

    Args:
        tensors (dict[str, Tensor]): Tensors under ``backbone.*`` and ``neck.*``, with mmdet's keys.
        source_format (str): ``'ccop'`` or a key of :data:`ccop_mm.weights.formats.FOREIGN_FORMATS`.
        title (str): Name of the format in messages.
        meta (dict): Metadata of the file.
    """

    tensors: dict[str, Tensor]
    source_format: str
    title: str
    meta: dict[str, Any]


def read_encoder(checkpoint: str | Path) -> EncoderCheckpoint:
    """Reads backbone, and FPN if present, of a checkpoint of any supported format.

    Args:
        checkpoint (str | Path): File, ``https://`` URL or ``torchvision://`` name.

    Raises:
        InputError: The file cannot be read, its keys belong to no supported format, or a tensor of the encoder has a
            NaN or infinite value.
    """
    state, meta = read_checkpoint(checkpoint)
    try:
        state = strip_wrappers(state)
        foreign = detect_foreign_format(state)
        if foreign is None:
            encoder = EncoderCheckpoint(select_encoder(state), 'ccop', 'CCOP', meta)
        else:
            title = FOREIGN_FORMATS[foreign].title
            encoder = EncoderCheckpoint(convert_foreign(state, foreign), foreign, title, meta)
        check_finite(encoder.tensors)
    except InputError as error:
        raise InputError(f'{checkpoint}: {error}') from None
    return encoder


class EncoderInit:
    """Base class of the initializers of a detector, which load either all tensors of their parts or none.

    Args:
        checkpoint (str): File, ``https://`` URL or ``torchvision://`` name of a CCOP checkpoint or of any format in
            :data:`ccop_mm.weights.formats.FOREIGN_FORMATS`.
    """

    def __init__(self, checkpoint: str) -> None:
        self.checkpoint = checkpoint

    def _read(self) -> EncoderCheckpoint:
        if not isinstance(self.checkpoint, str):
            raise InputError(
                f'{type(self).__name__} needs the path of a checkpoint, got {self.checkpoint!r}: '
                'set model.init_cfg.checkpoint'
            )
        return read_encoder(self.checkpoint)

    def _load(
        self, module: nn.Module, state: dict[str, Tensor], parts: tuple[str, ...], first_level: int, num_levels: int
    ) -> None:
        """Loads ``parts`` of a detector and logs what was loaded.

        Args:
            module (nn.Module): Detector.
            state (dict[str, Tensor]): Tensors with mmdet's keys.
            parts (tuple[str, ...]): Key prefixes to load.
            first_level (int): See :func:`ccop_mm.weights.key_mapping.pair_keys`.
            num_levels (int): See :func:`ccop_mm.weights.key_mapping.pair_keys`.
        """
        detector = {key: shape for key, shape in shapes(module.state_dict()).items() if key.startswith(parts)}
        try:
            pairs = pair_keys(detector, shapes(state), first_level, num_levels)
        except InputError as error:
            raise InputError(f'{self.checkpoint}: {error}') from None
        # mmengine initializes the children after their parent, except for its own Pretrained, and would overwrite the
        # weights. The neck is initialized here because some of its convolutions may have no source; the backbone is
        # only marked as initialized.
        backbone: Any = module.backbone
        neck: Any = getattr(module, 'neck', None)
        if neck is not None:
            neck.init_weights()
        backbone.is_init = True
        module.load_state_dict({key: state[source] for key, source in pairs.items()}, strict=False)
        if hasattr(module, '_params_init_info'):
            update_init_info(module, f'{type(self).__name__}: loaded from {self.checkpoint}')
        self._log(module, pairs, parts, first_level)

    def _log(self, module: nn.Module, pairs: dict[str, str], parts: tuple[str, ...], first_level: int) -> None:
        """Logs the number of loaded keys and parameters and the checksum, computed from the detector's tensors."""
        loaded_state = module.state_dict()
        loaded = {source: loaded_state[key] for key, source in pairs.items()}
        parameters = sum(value.numel() for key, value in module.named_parameters() if key in pairs)
        levels = f', FPN levels from the pre-trained P{first_level + 2} upward' if first_level else ''
        print_log(
            f'{type(self).__name__}: {len(pairs)} {"backbone and FPN" if parts == PARTS else "backbone"} keys '
            f'({parameters:,} parameters, blake2b {checksum(loaded)}) loaded from {self.checkpoint} '
            f'into {type(module).__name__}{levels}',
            logger='current',
        )


@WEIGHT_INITIALIZERS.register_module()
class CCOPPretrained(EncoderInit):
    """Loads backbone and FPN of a detector from a CCOP checkpoint, either completely or not at all.

    For the ``init_cfg`` of an mmdet detector with a ResNet and an FPN::

        model = dict(init_cfg=dict(type='CCOPPretrained', checkpoint=FILE))

    Running statistics are loaded like weights; BN and SyncBN have the same keys. A detector whose FPN starts at C3,
    such as RetinaNet, uses the pre-trained levels from C3 upward. :func:`ccop_mm.weights.key_mapping.pair_keys`
    defines which keys may be missing or unused. One log line states the number of loaded keys and parameters and the
    :func:`~ccop_mm.weights.checkpoint_file.checksum` of the loaded tensors, read back from the detector, under the
    keys of the checkpoint. In a list of initializers this one must be the last, because mmengine applies them in
    order.

    Args:
        checkpoint (str): File or URL of a CCOP pre-training checkpoint, of an export of one by
            tools/model_converters/export_checkpoint.py, or of the CCOP authors' release.
    """

    def __call__(self, module: nn.Module) -> None:
        """Initializes a detector.

        Args:
            module (nn.Module): Detector.

        Raises:
            InputError: ``module`` has no ResNet with an FPN, or the checkpoint cannot be read or does not match.
        """
        backbone, neck = getattr(module, 'backbone', None), getattr(module, 'neck', None)
        if not isinstance(backbone, ResNet) or not isinstance(neck, FPN):
            raise InputError(
                f'CCOPPretrained initializes a detector with a ResNet and an FPN, not {type(module).__name__}: '
                "write model=dict(init_cfg=dict(type='CCOPPretrained', ...)), not in the backbone or the neck"
            )
        encoder = self._read()
        if not has_fpn(encoder.tensors):
            raise InputError(
                f'{self.checkpoint} contains a backbone without an FPN (format: {encoder.title}): '
                "to load only the backbone use init_cfg=dict(type='BackbonePretrained', ...)"
            )
        first_level = backbone.out_indices[neck.start_level]
        self._load(module, encoder.tensors, PARTS, first_level, num_levels=len(neck.lateral_convs))


@WEIGHT_INITIALIZERS.register_module()
class BackbonePretrained(EncoderInit):
    """Loads the ResNet of a detector from a checkpoint without an FPN, either completely or not at all.

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
            InputError: ``module`` has no ResNet, or the checkpoint cannot be read, does not match, or contains an FPN.
        """
        if not isinstance(getattr(module, 'backbone', None), ResNet):
            raise InputError(
                f'BackbonePretrained initializes a detector with a ResNet, not {type(module).__name__}: '
                "write model=dict(init_cfg=dict(type='BackbonePretrained', ...)), not in the backbone"
            )
        encoder = self._read()
        if has_fpn(encoder.tensors):
            raise InputError(
                f"{self.checkpoint} also contains an FPN: use init_cfg=dict(type='CCOPPretrained', ...), or extract "
                'the backbone with tools/model_converters/export_checkpoint.py --to torchvision'
            )
        self._load(module, encoder.tensors, PARTS[:1], first_level=0, num_levels=4)

"""Pre-trained weights into a detector, key by key."""

from mmdet.models import FPN, ResNet
from mmengine.logging import print_log
from mmengine.model import update_init_info
from mmengine.registry import WEIGHT_INITIALIZERS

from ccop_mm.errors import InputError
from ccop_mm.weights.files import checksum, read_state_dict
from ccop_mm.weights.formats import SOURCES, has_fpn, to_mmdet
from ccop_mm.weights.keys import PARTS, pair_keys, shapes


class EncoderInit:
    """What the initializers of a detector share: a file, read and fitted completely or not at all.

    Args:
        checkpoint (str): File, ``https://`` address or ``torchvision://`` name, in any format of
            :data:`ccop_mm.weights.formats.SOURCES`.
    """

    def __init__(self, checkpoint):
        self.checkpoint = checkpoint

    def _read(self):
        """The format and the tensors of the checkpoint under mmdet's names."""
        if not isinstance(self.checkpoint, str):
            raise InputError(
                f'{type(self).__name__} needs the name of a checkpoint and got {self.checkpoint!r}: '
                'set model.init_cfg.checkpoint'
            )
        state = read_state_dict(self.checkpoint)
        try:
            return to_mmdet(state)
        except InputError as error:
            raise InputError(f'{self.checkpoint}: {error}') from None

    def _load(self, module, state, parts, **levels):
        """Fills ``parts`` of a detector from mmdet's names and says in one line what it then holds."""
        detector = {key: shape for key, shape in shapes(module.state_dict()).items() if key.startswith(parts)}
        try:
            pairs = pair_keys(detector, shapes(state), **levels)
        except InputError as error:
            raise InputError(f'{self.checkpoint}: {error}') from None
        # After a parent's initializer mmengine lets the children draw their weights (its own Pretrained alone waits),
        # unless they say that they are initialized. The neck draws now: some of its convolutions may have no source.
        if getattr(module, 'neck', None) is not None:
            module.neck.init_weights()
        module.backbone.is_init = True
        module.load_state_dict({key: state[source] for key, source in pairs.items()}, strict=False)
        if hasattr(module, '_params_init_info'):
            update_init_info(module, f'{type(self).__name__}: loaded from {self.checkpoint}')
        self._log(module, pairs, parts, levels.get('first_level', 0))

    def _log(self, module, pairs, parts, first_level):
        """Says what the detector now holds, read back from it."""
        held = module.state_dict()
        loaded = {source: held[key] for key, source in pairs.items()}
        parameters = sum(value.numel() for key, value in module.named_parameters() if key in pairs)
        shift = f', its FPN from the pre-trained P{first_level + 2} on' if first_level else ''
        print_log(
            f'{type(self).__name__}: {len(pairs)} {"backbone and FPN" if parts == PARTS else "backbone"} keys '
            f'({parameters:,} parameters, blake2b {checksum(loaded)}) loaded from {self.checkpoint} '
            f'into {type(module).__name__}{shift}',
            logger='current',
        )


@WEIGHT_INITIALIZERS.register_module()
class CCOPPretrained(EncoderInit):
    """Loads backbone and FPN of a detector from a CCOP checkpoint, completely or not at all.

    For the ``init_cfg`` of a whole mmdet detector with a ResNet and an FPN::

        model = dict(init_cfg=dict(type='CCOPPretrained', checkpoint=FILE))

    Running statistics are loaded like weights; BN and SyncBN have equal keys. A detector whose FPN starts at C3, as
    RetinaNet's, takes the pre-trained levels from C3 on; :func:`ccop_mm.weights.keys.pair_keys` tells what may be
    missing or unused. One line of the log gives the number of keys and parameters and the :func:`checksum` of the
    loaded tensors, read back from the detector, under the checkpoint's names. In a list of initializers this one stands
    last, for mmengine applies them in order.

    Args:
        checkpoint (str): File or URL of a CCOP pre-training checkpoint, of an export of one by tools/export.py, or of
            the authors' release.
    """

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
        name, state = self._read()
        if not has_fpn(state):
            raise InputError(
                f'{self.checkpoint} holds a backbone without an FPN (names of {SOURCES[name].title}): '
                "if that is meant, use init_cfg=dict(type='BackbonePretrained', ...)"
            )
        first_level = backbone.out_indices[neck.start_level]
        self._load(module, state, PARTS, first_level=first_level, num_levels=len(neck.lateral_convs))


@WEIGHT_INITIALIZERS.register_module()
class BackbonePretrained(EncoderInit):
    """Loads the ResNet of a detector from weights without an FPN, completely or not at all.

    For the ``init_cfg`` of a whole mmdet detector; mmengine's own ``Pretrained`` loads what fits and goes on::

        model = dict(init_cfg=dict(type='BackbonePretrained', checkpoint='torchvision://resnet50'))

    Takes torchvision's and timm's ResNets, MoCo v2's files, mmselfsup's MoCo, and what tools/import.py made of them.
    The classifier (``fc``), projections, key encoder and queues are left out, and nothing else. Neck and heads keep
    their own draw. The log line is as that of :class:`CCOPPretrained`.

    Args:
        checkpoint (str): File, ``https://`` address or ``torchvision://`` name.
    """

    def __call__(self, module):
        """Initializes ``module``.

        Args:
            module (nn.Module): A detector.

        Raises:
            InputError: ``module`` has no ResNet, or the checkpoint cannot be read, does not fit, or has an FPN as well.
        """
        if not isinstance(getattr(module, 'backbone', None), ResNet):
            raise InputError(
                f'BackbonePretrained is for a detector with a ResNet, not for {type(module).__name__}: '
                "write model=dict(init_cfg=dict(type='BackbonePretrained', ...)), not in the backbone"
            )
        _, state = self._read()
        if has_fpn(state):
            raise InputError(
                f"{self.checkpoint} holds an FPN as well: use init_cfg=dict(type='CCOPPretrained', ...), "
                'or take the backbone out of it by tools/export.py --to torchvision'
            )
        self._load(module, state, PARTS[:1])

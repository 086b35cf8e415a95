"""Initializer that starts a pre-training from the weights of any model with the same backbone."""

from mmengine.logging import print_log
from mmengine.registry import WEIGHT_INITIALIZERS
from torch import nn

from ccop_mm.utils.encoder_graph import find_without_influence, select_untrained
from ccop_mm.utils.errors import InputError
from ccop_mm.utils.text import format_truncated
from ccop_mm.weights.key_mapping import PARTS
from ccop_mm.weights.pretrained import EncoderInit, encoder_tensors
from ccop_mm.weights.sources import computed_buffers, output_norms, read_any_encoder

#: Names of left-out parts that a log line lists.
MAX_NAMES = 8


@WEIGHT_INITIALIZERS.register_module()
class EncoderPretrained(EncoderInit):
    """Loads the backbone, and the neck if the file has one, of CCOP or of a detector from any checkpoint.

    For the ``init_cfg`` of a pre-training, so that it does not start from random weights::

        model = dict(type='CCOP', init_cfg=dict(type='EncoderPretrained', checkpoint='torchvision://resnet50'))

    All tensors of the backbone must be in the file, with equal names and shapes, and all tensors of the file's backbone
    must be used. Norm layers after a map that a classifier does not return (Swin, ConvNeXt, PVT) may be missing. A neck
    is loaded completely; a file with a part of it is refused. If the file has no neck or one of another type, such as
    the pooling of a classifier, the neck keeps its initialization. Everything else in the file, such as heads, a
    classifier or a key encoder, is left out. One log line states the number of keys and parameters, the checksum of the
    loaded tensors, and what is left out or keeps its initialization.

    Args:
        checkpoint (str): File, ``https://`` URL, or name (``torchvision://resnet50``, ``timm://resnet50.a1_in1k``,
            ``mmcls://NAME``, ``open-mmlab://NAME``) of a detector of mmdet, a classifier or backbone of mmpretrain,
            mmcls, torchvision or timm, the original file of Swin or PVT, a CCOP checkpoint or an export of one, or any
            format in :data:`ccop_mm.weights.formats.FOREIGN_FORMATS`. Files are read with ``weights_only=True``.
        prefix (str, optional): Prefix of the keys of the backbone in the file, such as ``'backbone.'``. If it is given,
            only the backbone is loaded. By default it is found from the keys.
    """

    def __init__(self, checkpoint: str, prefix: str | None = None) -> None:
        super().__init__(checkpoint)
        self.prefix = prefix

    def __call__(self, module: nn.Module) -> None:
        """Initializes a model.

        Args:
            module (nn.Module): CCOP or a detector.

        Raises:
            InputError: ``module`` has no backbone, or the checkpoint cannot be read or does not match.
        """
        self._check(module)
        backbone, neck = module.backbone, getattr(module, 'neck', None)
        assert isinstance(backbone, nn.Module)  # checked above
        encoder = read_any_encoder(self.checkpoint, backbone, self.prefix)
        own = encoder_tensors(module)
        computed = {f'{PARTS[0]}{name}' for name in computed_buffers(backbone)}
        state = {key: tensor for key, tensor in encoder.tensors.items() if key not in computed}
        left_out = list(encoder.left_out)
        own_neck = {key for key in own if key.startswith(PARTS[1])}
        file_neck = {key for key in state if key.startswith(PARTS[1])}
        with_neck = bool(own_neck & file_neck)
        if not with_neck:
            state = {key: tensor for key, tensor in state.items() if key not in file_neck}
            left_out += ['neck'] if file_neck else []

        def select_optional(missing: frozenset[str]) -> frozenset[str]:
            optional = output_norms(missing, backbone)
            if with_neck and missing - optional:
                assert isinstance(neck, nn.Module)  # it has keys
                optional |= select_untrained(missing - optional, find_without_influence(backbone, neck))
            return optional

        keys = own.keys() - computed - (set() if with_neck else own_neck)
        try:
            line = self._load(module, state, keys, select_optional)
        except InputError as error:
            if with_neck and self.prefix is None:
                first, *lists = str(error).splitlines()
                advice = "; prefix='backbone.' loads only the backbone" if PARTS[1] in str(error) else ''
                raise InputError('\n'.join([f'{first}{advice}', *lists])) from None
            raise
        if own_neck and not with_neck:
            line += ', neck keeps its initialization'
        if left_out:
            line += f', left out of the file: {format_truncated(left_out, MAX_NAMES)}'
        print_log(line, logger='current')

"""Description of the differences between the tensors of a detector and of a checkpoint, with what to change."""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from ccop_mm.weights.key_mapping import Shapes

#: Keys that a message lists of each kind. If more keys differ in one way, a line with their number and the first says
#: as much as a list.
MAX_LISTED = 10

# Arguments of mmdet's and mmpretrain's backbones that set the number of channels and of blocks, most specific first.
_WIDTH_ARGUMENTS = ('base_channels', 'widen_factor', 'embed_dims', 'arch', 'extra')
_DEPTH_ARGUMENTS = ('depth', 'deepen_factor', 'depths', 'num_layers', 'arch', 'extra')

# Tensors of norm layers, and the bias that a convolution has only without one.
_NORM_TENSOR = re.compile(r'.*\.(?:(?:bn|gn|ln|in|norm)\d*\.\w+|conv\.bias)')
# Weights of a neck whose output channels are those of all its levels: FPN, HRFPN, ChannelMapper, RTMDet's and YOLOX's.
_OUTPUT_WEIGHT = re.compile(r'neck\.(?:\d+\.)?(?:fpn_convs|out_convs|convs)\.\d+\.conv\.weight')
# Weights of a neck whose input channels are those of one stage of the backbone: FPN, ChannelMapper.
_INPUT_WEIGHT = re.compile(r'neck\.(?:\d+\.)?(?:lateral_convs|convs)\.(\d+)\.conv\.weight')
# Weights of the necks of RTMDet and YOLOX that map one stage of the backbone, from the coarsest, to the next finer one.
_REDUCE_WEIGHT = re.compile(r'neck\.(?:\d+\.)?reduce_layers\.(\d+)\.conv\.weight')


@dataclass(frozen=True)
class Mismatch:
    """Keys that prevent a checkpoint from being loaded.

    Attributes:
        missing (tuple[str, ...]): Keys of the detector that the checkpoint lacks.
        reshaped (tuple[str, ...]): Keys of the detector that have another shape in the checkpoint.
        unused (tuple[str, ...]): Keys of the checkpoint that the detector lacks.
    """

    missing: tuple[str, ...]
    reshaped: tuple[str, ...]
    unused: tuple[str, ...]

    def __bool__(self) -> bool:
        """Returns whether there are any such keys."""
        return bool(self.missing or self.reshaped or self.unused)

    def describe(
        self,
        sources: Mapping[str, str],
        detector: Shapes,
        checkpoint: Shapes,
        arguments: Mapping[str, Collection[str]],
    ) -> str:
        """Formats a first line with the part that does not fit and what to change, and lists of keys if they help.

        Args:
            sources (Mapping[str, str]): Key in the detector -> key in the checkpoint.
            detector (Mapping[str, tuple[int, ...]]): Shapes of the detector's tensors.
            checkpoint (Mapping[str, tuple[int, ...]]): Shapes of the checkpoint's tensors.
            arguments (Mapping[str, Collection[str]]): Constructor arguments of ``'backbone'`` and ``'neck'``.
        """

        def name(key: str) -> str:
            return key if sources[key] == key else f'{key} (from {sources[key]})'

        def shape(key: str) -> str:
            return f'{name(key)}, {checkpoint[sources[key]]} in the checkpoint, {detector[key]} in the model'

        keys = [*self.missing, *self.reshaped, *self.unused]
        parts = ' and '.join(part for part in ('backbone', 'neck') if any(key.startswith(f'{part}.') for key in keys))
        first_line = (
            f'the checkpoint does not match the {parts}: {len(self.missing)} keys missing, '
            f'{len(self.reshaped)} with another shape, {len(self.unused)} unused'
        )
        advice = self.advise(detector, checkpoint, arguments)
        lists = {
            'missing from the checkpoint: ': list(map(name, self.missing)),
            'shape differs: ': list(map(shape, self.reshaped)),
            'not used by the model: ': list(self.unused),
        }
        kinds = {title: listed for title, listed in lists.items() if listed}
        longest = max(map(len, kinds.values()))
        if longest > MAX_LISTED and (len(kinds) == 1 or len(self.reshaped) > MAX_LISTED):
            examples = '; '.join(f'{title}{listed[0]}' for title, listed in kinds.items())
            return f'{first_line} (first {examples}): {advice}'
        lines = [f'{first_line}: {advice}']
        for title, listed in kinds.items():
            lines += [f'  {title}{key}' for key in listed[:MAX_LISTED]]
            if len(listed) > MAX_LISTED:
                lines.append(f'  {title}{len(listed) - MAX_LISTED} more keys')
        return '\n'.join(lines)

    def advise(self, detector: Shapes, checkpoint: Shapes, arguments: Mapping[str, Collection[str]]) -> str:
        """Returns what to change in the config of the detector, as far as the keys and shapes determine it."""
        differing = {'backbone': self._part('backbone'), 'neck': self._part('neck')}
        advice = []
        if differing['backbone']:
            advice += _advise_backbone(differing['backbone'], checkpoint, arguments.get('backbone', ()))
        if differing['neck']:
            if not {*detector}.intersection(key for key in checkpoint if key.startswith('neck.')):
                return 'the neck is of another type: use a checkpoint that was pre-trained with the neck of the model'
            advice += _advise_neck(differing['neck'], detector, checkpoint, arguments.get('neck', ()))
        if advice:
            return f'set {" and ".join(advice)} as in pre-training, or use another checkpoint'
        return 'use a complete checkpoint of the same backbone and neck, with the same norm layers'

    def _part(self, part: str) -> 'Mismatch':
        """Returns the keys of one part."""
        return Mismatch(
            *(
                tuple(key for key in keys if key.startswith(f'{part}.'))
                for keys in (self.missing, self.reshaped, self.unused)
            )
        )


def _advise_backbone(differing: Mismatch, checkpoint: Shapes, arguments: Collection[str]) -> list[str]:
    """Returns the arguments of the backbone to set."""
    present = {*differing.missing, *differing.unused}
    if present and not differing.reshaped and all(map(_NORM_TENSOR.fullmatch, present)):
        return ['backbone.norm_cfg'] if 'norm_cfg' in arguments else []
    advice = []
    width = _first_of(_WIDTH_ARGUMENTS, arguments)
    if differing.reshaped and width == 'base_channels' and 'backbone.conv1.weight' in checkpoint:
        # In ResNeXt, the widths within the blocks depend on further arguments.
        is_stem = 'backbone.conv1.weight' in differing.reshaped
        advice.append(f'backbone.{width}={checkpoint["backbone.conv1.weight"][0]}' if is_stem else 'backbone.type')
    elif differing.reshaped and width is not None:
        advice.append(f'backbone.{width}')
    depth = _first_of(_DEPTH_ARGUMENTS, arguments)
    if present and depth is not None and f'backbone.{depth}' not in advice:
        advice.append(f'backbone.{depth}')
    return advice


def _advise_neck(differing: Mismatch, detector: Shapes, checkpoint: Shapes, arguments: Collection[str]) -> list[str]:
    """Returns the arguments of the neck to set, with the values of the checkpoint where the shapes contain them."""
    advice = []
    for argument, find in (('out_channels', _out_channels), ('in_channels', _in_channels)):
        value = find(checkpoint)
        if value and value != find(detector) and (not arguments or argument in arguments):
            advice.append(f'neck.{argument}={value}')
    present = {*differing.missing, *differing.unused}
    if present and all(map(_NORM_TENSOR.fullmatch, present)):
        neck = [key for key in checkpoint if key.startswith('neck.') and _NORM_TENSOR.fullmatch(key)]
        has_norm = any(not key.endswith('conv.bias') for key in neck)
        advice.append('neck.norm_cfg' if has_norm else 'neck.norm_cfg=None')
    elif present and not advice:
        advice.append('the levels of the neck')
    return advice


def _out_channels(tensors: Shapes) -> int | None:
    """Returns the number of output channels of a neck, if it is that of all levels."""
    channels = {shape[0] for key, shape in tensors.items() if _OUTPUT_WEIGHT.fullmatch(key)}
    return channels.pop() if len(channels) == 1 else None


def _in_channels(tensors: Shapes) -> list[int]:
    """Returns the numbers of input channels of a neck, finest first; empty if its type is unknown."""
    inputs = {int(match[1]): shape[1] for key, shape in tensors.items() if (match := _INPUT_WEIGHT.fullmatch(key))}
    reduced = {int(match[1]): shape for key, shape in tensors.items() if (match := _REDUCE_WEIGHT.fullmatch(key))}
    if reduced:
        return [*(reduced[layer][0] for layer in sorted(reduced, reverse=True)), reduced[0][1]]
    return [inputs[level] for level in sorted(inputs)]


def _first_of(names: Iterable[str], available: Collection[str]) -> str | None:
    return next((name for name in names if name in available), None)

"""Outputs of a backbone and a neck, and which of their tensors these depend on."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ccop_mm.utils.errors import InputError
from ccop_mm.utils.model import inference_mode
from ccop_mm.utils.text import single_line

#: Side of the image of the dry run in pixels: one cell of a map of stride 128, the coarsest of mmdet's necks (P7).
IMAGE_SIZE = 128


class EncoderGraph:
    """Outputs for an image of zeros in evaluation mode, and their autograd graph.

    Only a forward pass is computed: running statistics, gradients, training modes and random generators do not change.
    A tensor influences a map if it is in the map's autograd graph.

    Args:
        backbone (nn.Module): Returns a list of maps ``(B, C, H, W)``.
        neck (nn.Module): Maps this list to another.

    Attributes:
        features (tuple[Tensor, ...]): Outputs of the backbone, each ``(1, C, H, W)``.
        pyramid (tuple[Tensor, ...]): Outputs of the neck, each ``(1, C, H, W)``.

    Raises:
        InputError: The modules cannot process the image, or do not return lists of maps.
    """

    def __init__(self, backbone: nn.Module, neck: nn.Module) -> None:
        parts = nn.ModuleDict(dict(backbone=backbone, neck=neck))
        self._parameters = dict(parts.named_parameters(remove_duplicate=False))
        self._keys = list(parts.state_dict())
        with _record_graph(parts):
            features, pyramid = _forward(backbone, neck)
            leaves = [{id(leaf) for leaf in _leaves(output)} for output in (*features, *pyramid)]
        self.features = tuple(output.detach() for output in features)
        self.pyramid = tuple(output.detach() for output in pyramid)
        self._leaves = {id(output): ids for output, ids in zip((*self.features, *self.pyramid), leaves, strict=True)}

    def find_without_influence(self, outputs: Sequence[Tensor]) -> tuple[str, ...]:
        """Finds the tensors that influence none of the outputs.

        Args:
            outputs (Sequence[Tensor]): Elements of :attr:`features` and :attr:`pyramid`.

        Returns:
            tuple[str, ...]: Keys with the prefixes ``backbone.`` and ``neck.``, in the order of the state dict. A
            buffer is among them if all parameters of its module are.
        """
        used = set().union(*(self._leaves[id(output)] for output in outputs))
        unused = {name for name, parameter in self._parameters.items() if id(parameter) not in used}
        return tuple(key for key in self._keys if self._belongs_to(key, unused))

    def _belongs_to(self, key: str, unused: set[str]) -> bool:
        """Whether a tensor is in ``unused``; a buffer is if all parameters of the nearest module with any are."""
        if key in self._parameters:
            return key in unused
        path = key
        while path := path.rpartition('.')[0]:
            inside = [name for name in self._parameters if name.startswith(f'{path}.')]
            if inside:
                return unused.issuperset(inside)
        return False


def find_without_influence(backbone: nn.Module, neck: nn.Module) -> list[frozenset[str]]:
    """Finds, for k = 1, 2, ..., the tensors that influence none of the k finest levels and not the backbone's last map.

    For an FPN whose P6 and P7 have convolutions of their own, these are the convolutions of P6 and P7 for k = 3.

    Args:
        backbone (nn.Module): See :class:`EncoderGraph`.
        neck (nn.Module): See :class:`EncoderGraph`.

    Returns:
        list[frozenset[str]]: One set of keys per level, each a subset of the one before.

    Raises:
        InputError: See :class:`EncoderGraph`.
    """
    graph = EncoderGraph(backbone, neck)
    levels = sorted(graph.pyramid, key=lambda level: -level.shape[-2] * level.shape[-1])
    return [
        frozenset(graph.find_without_influence([graph.features[-1], *levels[:number]]))
        for number in range(1, len(levels) + 1)
    ]


def select_untrained(missing: frozenset[str], without_influence: Sequence[frozenset[str]]) -> frozenset[str]:
    """Selects the keys that a checkpoint may lack because pre-training does not train them.

    Pre-training uses the k finest levels of the neck, for some k, and trains all tensors that influence them.

    Args:
        missing (frozenset[str]): Keys that a checkpoint lacks.
        without_influence (Sequence[frozenset[str]]): From :func:`find_without_influence`.

    Returns:
        frozenset[str]: ``missing``, if these are all tensors that do not influence the k finest levels. Otherwise only
        those that influence no level at all.
    """
    unused = without_influence[-1]
    if any(missing - unused == untrained - unused for untrained in without_influence):
        return missing
    return missing & unused


@contextlib.contextmanager
def _record_graph(parts: nn.Module) -> Iterator[None]:
    """Puts modules into evaluation mode with an autograd graph that contains all parameters; restores everything."""
    flags = [(parameter, parameter.requires_grad) for parameter in parts.parameters()]
    # Activation checkpointing would hide its parameters from the graph.
    checkpointed: list[Any] = [module for module in parts.modules() if getattr(module, 'with_cp', False)]
    try:
        with inference_mode(parts), torch.enable_grad(), torch.random.fork_rng(devices=[]):
            for module in checkpointed:
                module.with_cp = False
            parts.requires_grad_(True)  # after the change of the mode, in which backbones freeze their stages
            yield
    finally:
        for parameter, requires_grad in flags:
            parameter.requires_grad_(requires_grad)
        for module in checkpointed:
            module.with_cp = True


def _forward(backbone: nn.Module, neck: nn.Module) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Returns the maps of backbone and neck for an image of zeros."""
    parameter = next(backbone.parameters())
    try:
        features = backbone(parameter.new_zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE))
        pyramid = neck(tuple(features))
    except Exception as error:  # the modules may raise anything
        raise InputError(
            f'{type(backbone).__name__} and {type(neck).__name__} cannot process an image of {IMAGE_SIZE} x '
            f'{IMAGE_SIZE} px: {type(error).__name__}: {single_line(error)}'
        ) from error
    for part, maps in ((backbone, features), (neck, pyramid)):
        if not isinstance(maps, (list, tuple)) or not all(
            isinstance(level, Tensor) and level.ndim == 4 for level in maps
        ):
            raise InputError(f'{type(part).__name__} does not return a list of maps (B, C, H, W)')
    return features, pyramid


def _leaves(output: Tensor) -> list[Tensor]:
    """Returns the tensors at the ends of the autograd graph of an output."""
    reached: set[Any] = set()
    pending = [output.grad_fn]
    while pending:
        node = pending.pop()
        if node is not None and node not in reached:
            reached.add(node)
            pending += [source for source, _ in node.next_functions]
    return [node.variable for node in reached if hasattr(node, 'variable')]

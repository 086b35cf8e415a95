"""Spatial noise curriculum learning: the noise of Eq. 7, and the transform that owns the curriculum's state."""

import math

import torch
from mmcv.transforms import BaseTransform
from mmselfsup.registry import TRANSFORMS
from torch import Tensor

from ccop_mm import boxes as box_ops


def interpolate(start_end: tuple[float, float], progress: float) -> float:
    """Linear from the first value at ``progress`` 0 to the second at 1 (Sec. 3.3)."""
    start, end = start_end
    return start + (end - start) * progress


def _axis_overlap(shift: Tensor, scale: Tensor, anchor: str) -> Tensor:
    """Length of the overlap of [0, 1] with the same interval after Eq. 7 on one axis; ``scale`` is exp(sw)."""
    low = shift if anchor == 'top_left' else 0.5 + shift - scale / 2
    return (torch.minimum(low + scale, torch.ones_like(low)) - low.clamp(min=0)).clamp(min=0)


def noise_iou(noise: Tensor, anchor: str = 'top_left') -> Tensor:
    """IoU of a box with its jittered self, ``(...)``: by Eq. 7 the noise ``(..., 4)`` alone decides it, not the box."""
    scale = noise[..., 2:].exp()
    overlap = _axis_overlap(noise[..., :2], scale, anchor).prod(-1)
    return overlap / (1 + scale.prod(-1) - overlap)


def _axis_bounds(zeta: float, zeta_wh: float, beta: float, anchor: str) -> tuple[float, float, float]:
    """The least and greatest shift, and the greatest log scale, that an interval with 1-D IoU >= beta can have.

    The shorter interval lies in the longer at best, so exp(-|sw|) >= beta. The shift bounds follow from the overlap
    being at most 1 - s for a shift to the right, and from the longer interval holding both for a shift to the left.
    """
    scale = min(zeta_wh, -math.log(beta)) if beta > 0 else zeta_wh
    if anchor == 'center' or beta <= 0:
        return -zeta, zeta, scale
    return -min(zeta, 1 / beta - 1), min(zeta, 1 - beta), scale


def _axis_noise(count: int, bounds: tuple[float, float, float], beta: float, anchor: str, generator) -> Tensor:
    """What is left of ``count`` uniform draws (shift, log scale) within bounds, given a 1-D IoU >= beta: (M, 2)."""
    low, high, scale = bounds
    draws = torch.rand(count, 2, generator=generator)
    draws = draws * draws.new_tensor([high - low, 2 * scale]) + draws.new_tensor([low, -scale])
    grown = draws[:, 1].exp()
    overlap = _axis_overlap(draws[:, 0], grown, anchor)
    return draws[overlap >= beta * (1 + grown - overlap)]


def valid_noise(
    count: int,
    zeta: float,
    beta: float,
    zeta_wh: float | None = None,
    anchor: str = 'top_left',
    generator: torch.Generator | None = None,
) -> tuple[Tensor, float]:
    """Independent draws of Eq. 7's noise, exactly uniform on (-zeta, zeta) conditioned on an IoU of at least beta.

    Plain rejection accepts 1.4 % of the paper's draws at t = 0. This draws from a smaller set that holds all accepted
    noise, and rejects there, so the distribution is the same: IoU >= beta implies that the 1-D IoU on each axis is at
    least beta, the two axes are independent before the last rejection, and each axis's own rejection is cheap.

    Args:
        count (int): How many, for all objects and all candidates of a step together.
        zeta (float): Half width of the range of sx and sy; of sw and sh too unless ``zeta_wh`` is given.
        beta (float): IoU floor, below 1.
        zeta_wh (float, optional): Half width of the range of sw and sh.
        anchor (str): See :func:`ccop_mm.boxes.jitter`.
        generator (torch.Generator, optional): On the CPU; the global one by default.

    Returns:
        tuple[Tensor, float]: ``(count, 4)`` float32 noise ``(sx, sy, sw, sh)``, and an estimate of the share of plain
            draws
        that would have been accepted (0 if ``count`` is 0).
    """
    zeta_wh = zeta if zeta_wh is None else zeta_wh
    bounds = _axis_bounds(zeta, zeta_wh, beta, anchor)
    low, high, scale = bounds
    # Share of plain draws of (shift, log scale) that fall within the bounds, on one axis.
    within = (high - low) * 2 * scale / (4 * zeta * zeta_wh) if zeta and zeta_wh else 1.0
    accepted, have, tried, axis_kept, axis_drawn = [], 0, 0, 0, 0
    rate = 0.1  # accepted per drawn: a guess for the first round, the measured rate after it
    while have < count:
        size = 2 * (int((count - have) / rate * 1.2) + 64)
        pairs = _axis_noise(size, bounds, beta, anchor, generator)
        half = len(pairs) // 2
        # (half, 2) x, (half, 2) y -> (half, 4) as sx, sy, sw, sh
        noise = torch.stack([pairs[:half], pairs[half : 2 * half]], dim=2).flatten(1)
        noise = noise[noise_iou(noise, anchor) >= beta]
        accepted.append(noise)
        have, tried = have + len(noise), tried + half
        axis_kept, axis_drawn = axis_kept + len(pairs), axis_drawn + size
        rate = max(2 * have / axis_drawn, 1e-4)
    noise = torch.cat(accepted)[:count] if accepted else torch.zeros(0, 4)
    acceptance = (within * axis_kept / axis_drawn) ** 2 * have / tried if tried else 0.0
    return noise, acceptance


@TRANSFORMS.register_module()
class SCSBoxJitter(BaseTransform):
    """Jittered copies of boxes, the more daring the further training has come (Sec. 3.3, Eq. 7).

    CCOP owns it as ``model.box_jitter`` and :class:`ccop_mm.engine.SpatialCurriculumHook` sets ``progress``. It works
    on the CPU, where boxes come from, so that a training step needs no host-device sync for it. Used as a transform it
    adds ``jittered_boxes (N, J, 4)`` and ``jittered_valid (N, J)`` for the results' ``proposals (N, 4)``, for pictures.

    Args:
        num_jitter (int): Candidates per box, J. The paper does not give it; 10 is what the authors' code uses.
        noise (tuple[float, float]): zeta at t = 0 and t = 1 (Sec. 3.3: 0.3 and 1.0).
        min_iou (tuple[float, float]): beta at t = 0 and t = 1 (Sec. 3.3: 0.8 and 0.3).
        anchor (str): ``'top_left'`` (the paper) or ``'center'`` (the authors' code).
        include_original (bool): Add the unjittered box as a last candidate, always valid (the authors' code).
        redraw (bool): True: draw until every candidate is valid. False: J plain draws, those below the floor masked
            (the authors' code).
        noise_wh (tuple[float, float], optional): Own range for sw and sh; ``noise`` serves all four by default.
    """

    def __init__(
        self,
        num_jitter: int = 10,
        noise: tuple[float, float] = (0.3, 1.0),
        min_iou: tuple[float, float] = (0.8, 0.3),
        anchor: str = 'top_left',
        include_original: bool = False,
        redraw: bool = True,
        noise_wh: tuple[float, float] | None = None,
    ) -> None:
        if anchor not in box_ops.ANCHORS:
            raise ValueError(f'anchor must be one of {box_ops.ANCHORS}, got {anchor!r}')
        if num_jitter < 1:
            raise ValueError(f'num_jitter must be at least 1, got {num_jitter}')
        if not all(0 <= floor < 1 for floor in min_iou):
            raise ValueError(f'min_iou must lie in [0, 1), got {min_iou}')
        self.num_jitter = num_jitter
        self.noise = tuple(noise)
        self.min_iou = tuple(min_iou)
        self.anchor = anchor
        self.include_original = include_original
        self.redraw = redraw
        self.noise_wh = tuple(noise_wh) if noise_wh is not None else self.noise
        self.progress = 0.0
        #: Share of plain draws that reach the IoU floor, as of the last call, for the log; None before the first.
        self.acceptance: float | None = None

    @property
    def zeta(self) -> float:
        """The present half width of sx and sy's range."""
        return interpolate(self.noise, self.progress)

    @property
    def beta(self) -> float:
        """The present IoU floor."""
        return interpolate(self.min_iou, self.progress)

    def jitter(
        self, boxes: Tensor, img_shape: tuple[int, int], generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draws candidates for all boxes at once.

        Args:
            boxes (Tensor): ``(N, 4)`` on the CPU.
            img_shape (tuple[int, int]): ``(height, width)``; candidates are clipped to it.
            generator (torch.Generator, optional): On the CPU.

        Returns:
            tuple[Tensor, Tensor]: Candidates ``(N, J', 4)`` and their validity ``(N, J')``; J' = J, plus 1 with
            ``include_original``. A box without area inside the image has no valid candidate.
        """
        count = len(boxes)
        zeta_wh = interpolate(self.noise_wh, self.progress)
        if self.redraw:
            noise, self.acceptance = valid_noise(
                count * self.num_jitter, self.zeta, self.beta, zeta_wh, self.anchor, generator
            )
        else:
            noise = torch.rand(count * self.num_jitter, 4, generator=generator) * 2 - 1
            noise *= noise.new_tensor([self.zeta, self.zeta, zeta_wh, zeta_wh])
        noise = noise.to(boxes.dtype).view(count, self.num_jitter, 4)
        candidates = box_ops.clip(box_ops.jitter(boxes[:, None], noise, self.anchor), img_shape)
        if self.redraw:
            valid = torch.ones(candidates.shape[:2], dtype=torch.bool)
        else:
            valid = box_ops.aligned_iou(candidates, boxes[:, None]) >= self.beta
            self.acceptance = valid.float().mean().item() if count else None
        if self.include_original:
            candidates = torch.cat([candidates, boxes[:, None]], dim=1)
            valid = torch.cat([valid, valid.new_ones(count, 1)], dim=1)
        in_view = box_ops.area(box_ops.clip(boxes, img_shape)) > 0
        return candidates, valid & in_view[:, None] & (box_ops.area(candidates) > 0)

    def transform(self, results: dict) -> dict:
        """Adds candidates of ``results['proposals']``, at the present progress."""
        boxes = torch.as_tensor(results['proposals'])
        results['jittered_boxes'], results['jittered_valid'] = self.jitter(boxes, results['img'].shape[:2])
        return results

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(num_jitter={self.num_jitter}, noise={self.noise}, noise_wh={self.noise_wh}, '
            f'min_iou={self.min_iou}, anchor={self.anchor!r}, redraw={self.redraw}, '
            f'include_original={self.include_original}, progress={self.progress:.3f})'
        )

"""Spatial noise curriculum (Sec. 3.3): sampling of the noise of Eq. 7, and the box jitter module."""

import math

import torch
from mmcv.transforms import BaseTransform
from mmselfsup.registry import TRANSFORMS
from torch import Tensor

from ccop_mm.utils import boxes as box_ops


def interpolate(start_end: tuple[float, float], progress: float) -> float:
    """Interpolates linearly between the values at ``progress`` 0 and 1, to which it is limited (Sec. 3.3)."""
    start, end = start_end
    progress = min(max(progress, 0.0), 1.0)
    return start + (end - start) * progress


def _axis_overlap(shift: Tensor, scale: Tensor, anchor: str) -> Tensor:
    """Computes the overlap of [0, 1] with its jittered version (Eq. 7) on one axis; ``scale`` is exp(sw)."""
    low = shift if anchor == 'top_left' else 0.5 + shift - scale / 2
    return (torch.minimum(low + scale, torch.ones_like(low)) - low.clamp(min=0)).clamp(min=0)


def noise_iou(noise: Tensor, anchor: str = 'top_left') -> Tensor:
    """Computes the IoU of a box and its jittered version, which under Eq. 7 depends on the noise only.

    Args:
        noise (Tensor): ``(..., 4)``: sx, sy, sw, sh.
        anchor (str): See :func:`ccop_mm.utils.boxes.jitter`.

    Returns:
        Tensor: ``(...)``.
    """
    scale = noise[..., 2:].exp()
    overlap = _axis_overlap(noise[..., :2], scale, anchor).prod(-1)
    return overlap / (1 + scale.prod(-1) - overlap)


def _axis_bounds(zeta: float, zeta_wh: float, beta: float, anchor: str) -> tuple[float, float, float]:
    """Computes bounds (minimum shift, maximum shift, maximum log scale) of noise with a 1-D IoU of at least beta.

    The IoU of two intervals is at most the ratio of their lengths, so exp(-|sw|) >= beta. After a shift s > 0 the
    overlap is at most 1 - s, and after s < 0 the union is at least 1 + |s|.
    """
    scale = min(zeta_wh, -math.log(beta)) if beta > 0 else zeta_wh
    if anchor == 'center' or beta <= 0:
        return -zeta, zeta, scale
    return -min(zeta, 1 / beta - 1), min(zeta, 1 - beta), scale


def _axis_noise(
    count: int, bounds: tuple[float, float, float], beta: float, anchor: str, generator: torch.Generator | None
) -> Tensor:
    """Samples ``count`` pairs (shift, log scale) uniformly; returns those with a 1-D IoU >= beta, ``(M, 2)``."""
    low, high, scale = bounds
    samples = torch.rand(count, 2, generator=generator)
    samples = samples * samples.new_tensor([high - low, 2 * scale]) + samples.new_tensor([low, -scale])
    length = samples[:, 1].exp()
    overlap = _axis_overlap(samples[:, 0], length, anchor)
    return samples[overlap >= beta * (1 + length - overlap)]


def sample_valid_noise(
    count: int,
    zeta: float,
    beta: float,
    zeta_wh: float | None = None,
    anchor: str = 'top_left',
    generator: torch.Generator | None = None,
) -> tuple[Tensor, float]:
    """Samples the noise of Eq. 7: independent, uniform on (-zeta, zeta), conditioned on an IoU of at least beta.

    Plain rejection sampling accepts 1.4 % of the paper's samples at t = 0. Here samples come from a smaller set that
    contains all accepted noise, which leaves the distribution unchanged: IoU >= beta implies a 1-D IoU of at least beta
    on each axis, so each axis is rejected separately before the joint rejection.

    Args:
        count (int): Number of samples, for all candidates of all objects of a step.
        zeta (float): Half width of the range of sx and sy, and of sw and sh unless ``zeta_wh`` is given.
        beta (float): IoU floor, below 1.
        zeta_wh (float, optional): Half width of the range of sw and sh.
        anchor (str): See :func:`ccop_mm.utils.boxes.jitter`.
        generator (torch.Generator, optional): CPU generator; the global one by default.

    Returns:
        tuple[Tensor, float]: ``(count, 4)`` float32 noise (sx, sy, sw, sh), and the estimated acceptance rate of plain
        rejection sampling (0 if ``count`` is 0).
    """
    zeta_wh = zeta if zeta_wh is None else zeta_wh
    bounds = _axis_bounds(zeta, zeta_wh, beta, anchor)
    low, high, scale = bounds
    # Probability that a plain sample of (shift, log scale) falls within the bounds, on one axis.
    within = (high - low) * 2 * scale / (4 * zeta * zeta_wh) if zeta and zeta_wh else 1.0
    accepted, have, tried, axis_kept, axis_sampled = [], 0, 0, 0, 0
    rate = 0.1  # acceptance rate: a guess for the first round, then measured
    while have < count:
        size = 2 * (int((count - have) / rate * 1.2) + 64)
        pairs = _axis_noise(size, bounds, beta, anchor, generator)
        half = len(pairs) // 2
        # (half, 2) x, (half, 2) y -> (half, 4) as sx, sy, sw, sh
        noise = torch.stack([pairs[:half], pairs[half : 2 * half]], dim=2).flatten(1)
        noise = noise[noise_iou(noise, anchor) >= beta]
        accepted.append(noise)
        have, tried = have + len(noise), tried + half
        axis_kept, axis_sampled = axis_kept + len(pairs), axis_sampled + size
        rate = max(2 * have / axis_sampled, 1e-4)
    noise = torch.cat(accepted)[:count] if accepted else torch.zeros(0, 4)
    acceptance = (within * axis_kept / axis_sampled) ** 2 * have / tried if tried else 0.0
    return noise, acceptance


@TRANSFORMS.register_module()
class SCSBoxJitter(BaseTransform):
    """Jitters boxes with the noise of the spatial curriculum (Sec. 3.3, Eq. 7).

    SCS stands for Spatial Curriculum Selection, the paper's name for the module. CCOP has it as ``model.box_jitter``,
    and :class:`ccop_mm.engine.SpatialCurriculumHook` sets ``progress``. It works on the CPU, where boxes are, so a
    training step needs no host-device synchronization for it. As a transform, for figures, it adds ``jittered_boxes (N,
    J, 4)`` and ``jittered_valid (N, J)`` for ``results['proposals'] (N, 4)``.

    Args:
        num_jitter (int): J, candidates per box. Not given in the paper; 10 in the authors' code.
        noise (tuple[float, float]): zeta at t = 0 and t = 1 (Sec. 3.3: 0.3 and 1.0).
        min_iou (tuple[float, float]): beta, the IoU floor, at t = 0 and t = 1 (Sec. 3.3: 0.8 and 0.3).
        anchor (str): ``'top_left'`` (paper) or ``'center'`` (authors' code).
        include_original (bool): Append the unjittered box as an always valid candidate (authors' code).
        redraw (bool): True: resample until every candidate is valid. False: sample J candidates and mark those below
            the IoU floor as invalid (authors' code).
        noise_wh (tuple[float, float], optional): zeta for sw and sh; ``noise`` by default.
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
        #: Acceptance rate of plain sampling in the last call, for the log; None before the first call.
        self.acceptance: float | None = None

    @property
    def zeta(self) -> float:
        """Current half width of the range of sx and sy."""
        return interpolate(self.noise, self.progress)

    @property
    def beta(self) -> float:
        """Current IoU floor."""
        return interpolate(self.min_iou, self.progress)

    def jitter(
        self, boxes: Tensor, img_shape: tuple[int, int], generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Samples candidates for all boxes.

        Args:
            boxes (Tensor): ``(N, 4)`` xyxy in pixels, on the CPU.
            img_shape (tuple[int, int]): ``(height, width)``; candidates are clipped to it.
            generator (torch.Generator, optional): CPU generator; the global one by default.

        Returns:
            tuple[Tensor, Tensor]: Candidates ``(N, J', 4)`` and their validity ``(N, J')`` bool; J' is J, plus 1 with
            ``include_original``. A box without area inside the image has no valid candidate.
        """
        count = len(boxes)
        zeta_wh = interpolate(self.noise_wh, self.progress)
        if self.redraw:
            noise, self.acceptance = sample_valid_noise(
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
        """Adds candidates of ``results['proposals']`` at the current progress."""
        boxes = torch.as_tensor(results['proposals'])
        results['jittered_boxes'], results['jittered_valid'] = self.jitter(boxes, results['img'].shape[:2])
        return results

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(num_jitter={self.num_jitter}, noise={self.noise}, noise_wh={self.noise_wh}, '
            f'min_iou={self.min_iou}, anchor={self.anchor!r}, redraw={self.redraw}, '
            f'include_original={self.include_original}, progress={self.progress:.3f})'
        )

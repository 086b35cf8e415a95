"""What the network sees: both views of photos, their common objects, and the key boxes that the curriculum makes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from mmengine.config import Config
from mmengine.dataset import default_collate
from mmengine.registry import DATASETS, MODELS, TRANSFORMS, init_default_scope

from ccop_mm.datasets import SampleKey
from ccop_mm.errors import InputError
from ccop_mm.visualization.figure_file import check_figure_path, save_figure

#: Inches: one view, the gaps, the line of text above a pair.
VIEW, GAP, TITLE = 2.4, 0.06, 0.22


def draw_views(
    config: Config,
    indices: Sequence[int] | None = None,
    num: int = 4,
    progress: float = 0.5,
    epoch: int = 0,
    seed: int = 0,
    out: str | Path | None = None,
) -> Figure:
    """Draws a row per photo: query view, key view, and the key view again with the jittered candidates.

    Views come from the config's own data set, through the model's own data preprocessor: these are the very pixels that
    a training run with this seed gives the network at this epoch, normalization undone. A matched pair of boxes has one
    color, of its own in the row. Candidates are drawn for a few objects.

    Args:
        config (Config): Pre-training config.
        indices (Sequence[int], optional): Numbers of the photos in the data set; drawn at random by default.
        num (int): How many are drawn, at most.
        progress (float): Fraction of training done, t.
        epoch (int): Of the sampler, from 0.
        seed (int): Of the run.
        out (str | Path, optional): Also write the figure to this ``*.png`` or ``*.svg``.

    Returns:
        Figure: Of matplotlib; the patches' labels are ``'object'`` and ``'candidate'``.

    Raises:
        InputError: The config has no such data set, a photo's number is out of range, or ``out`` has another suffix.
    """
    if out is not None:
        check_figure_path(out)
    if not 0 <= progress <= 1:
        raise InputError(f'progress is a fraction of the training, from 0 to 1; got {progress:g}')
    views, samples = load_views(config, indices, num, epoch, seed)
    jitter = TRANSFORMS.build(config.model.get('box_jitter') or {'type': 'mmselfsup.SCSBoxJitter'})
    jitter.progress = progress
    rows = len(samples)
    width, height = 3 * VIEW + 4 * GAP, rows * (VIEW + TITLE + GAP)
    figure = Figure(figsize=(width, height), facecolor='white')
    for row, sample in enumerate(samples):
        bottom = 1 - (row + 1) * (VIEW + TITLE + GAP) / height
        cells = [
            figure.add_axes(((GAP + column * (VIEW + GAP)) / width, bottom, VIEW / width, VIEW / height))
            for column in range(3)
        ]
        generator = torch.Generator().manual_seed(seed + row)
        _draw_row(cells, [view[row] for view in views], sample, jitter, generator)
    if out is not None:
        save_figure(figure, out)
    return figure


def load_views(
    config: Config, indices: Sequence[int] | None = None, num: int = 4, epoch: int = 0, seed: int = 0
) -> tuple[list[np.ndarray], list]:
    """Samples of a config as the network gets them.

    Args:
        config (Config): Pre-training config.
        indices (Sequence[int], optional): Numbers of the photos in the data set; drawn at random by default.
        num (int): How many are drawn, at most.
        epoch (int): Of the sampler, from 0.
        seed (int): Of the run.

    Returns:
        tuple[list, list]: Query and key views, each ``(B, H, W, 3)`` uint8 RGB with normalization undone; data samples.

    Raises:
        InputError: The config has no such data set, or a photo's number is out of range.
    """
    dataset = (config.get('train_dataloader') or {}).get('dataset')
    if dataset is None or 'model' not in config:
        raise InputError(f'{config.filename}: needs model and train_dataloader.dataset')
    init_default_scope(config.get('default_scope', 'mmselfsup'))
    dataset = DATASETS.build(dataset)
    if indices is None:
        indices = np.random.default_rng(seed).permutation(len(dataset))[:num].tolist()
    wrong = [index for index in indices if not 0 <= index < len(dataset)]
    if wrong or not len(indices):
        raise InputError(f'photos are numbered from 0 to {len(dataset) - 1}; got {list(indices)}')
    batch = default_collate([dataset[SampleKey(seed, epoch, index)] for index in indices])
    settings = {'type': 'mmselfsup.TwoViewDataPreprocessor', **(config.model.get('data_preprocessor') or {})}
    preprocessor = MODELS.build(settings)
    prepared = preprocessor(batch)
    bgr = not settings.get('bgr_to_rgb', False)
    return [_to_pixels(view, preprocessor, bgr) for view in prepared['inputs']], prepared['data_samples']


def _to_pixels(view: torch.Tensor, preprocessor, bgr: bool) -> np.ndarray:
    if hasattr(preprocessor, 'mean'):
        view = view * preprocessor.std + preprocessor.mean
    view = view.flip(1) if bgr else view
    # (B, 3, H, W) -> (B, H, W, 3)
    return view.clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def colors_of(count: int) -> np.ndarray:
    """Colors ``(count, 3)`` of the pairs, RGB from 0 to 1: evenly spaced hues, bright and dark in turn."""
    hues = np.arange(count) / max(count, 1)
    values = np.where(np.arange(count) % 2, 0.75, 1.0)
    return hsv_to_rgb(np.stack([hues, np.full(count, 0.95), values], axis=1)) if count else np.zeros((0, 3))


def _draw_row(cells: list[Axes], views: list[np.ndarray], sample, jitter, generator, num_objects: int = 3) -> None:
    label = sample.pseudo_label
    colors = colors_of(len(label.boxes_q))
    for axes, view in zip(cells, (views[0], views[1], views[1]), strict=True):
        height, width = view.shape[:2]
        # The extent puts pixel edges at whole numbers, as boxes count them.
        axes.imshow(view, extent=(0, width, height, 0))
        axes.set_axis_off()
    for axes, boxes in zip(cells, (label.boxes_q, label.boxes_k), strict=False):
        _add_boxes(axes, boxes, colors, 'object', linewidth=1.4)
    size = views[1].shape[:2]
    candidates, valid = jitter.jitter(label.boxes_k, size, generator)
    # The largest are told apart best.
    sides = label.boxes_k[:, 2:] - label.boxes_k[:, :2]
    for number in sides.prod(dim=1).argsort(descending=True)[:num_objects].tolist():
        own = candidates[number][valid[number]]
        _add_boxes(cells[2], own, [colors[number]] * len(own), 'candidate', linewidth=0.6)
        _add_boxes(cells[2], label.boxes_k[number : number + 1], colors[number : number + 1], 'object', linewidth=1.8)
    name = str(sample.get('img_path', '')).rpartition('/')[2]
    cells[0].set_title(f'{name}: query, {len(colors)} common objects', fontsize=7, pad=3)
    cells[1].set_title('key', fontsize=7, pad=3)
    cells[2].set_title(
        f'key boxes at $t = {jitter.progress:g}$, $\\zeta = {jitter.zeta:.2f}$, $\\beta = {jitter.beta:.2f}$',
        fontsize=7,
        pad=3,
    )


def _add_boxes(axes: Axes, boxes: torch.Tensor, colors, label: str, **style) -> None:
    for (x1, y1, x2, y2), color in zip(boxes.tolist(), colors, strict=True):
        axes.add_patch(
            Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, label=label, edgecolor=color, joinstyle='miter', **style)
        )

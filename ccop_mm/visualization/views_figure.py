"""Figure of the network input: both views of an image, the matched boxes, and the jittered key boxes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.dataset import default_collate
from mmengine.registry import DATASETS, MODELS, TRANSFORMS, init_default_scope
from mmengine.structures import BaseDataElement
from torch import nn

from ccop_mm.datasets import SampleKey
from ccop_mm.models import SCSBoxJitter
from ccop_mm.utils.errors import InputError
from ccop_mm.visualization.box_patches import add_boxes
from ccop_mm.visualization.figure_file import check_figure_path, save_figure

#: Size of a view, of the gaps and of the title above a pair, in inches.
VIEW, GAP, TITLE = 2.4, 0.06, 0.22


def plot_views(
    config: Config,
    indices: Sequence[int] | None = None,
    num: int = 4,
    progress: float = 0.5,
    epoch: int = 0,
    seed: int = 0,
    out: str | Path | None = None,
) -> Figure:
    """Plots one row per image: the query view, the key view, and the key view with jittered candidates.

    The views come from the dataset and the data preprocessor of the config, with the normalization undone. They are the
    pixels that a training run with this seed feeds to the network in this epoch. The two boxes of a matched pair have
    the same color, which is unique in the row. Candidates are shown for the largest objects.

    Args:
        config (Config): Pre-training config.
        indices (Sequence[int], optional): Indices of images in the dataset. By default they are sampled at random.
        num (int): Maximum number of sampled images.
        progress (float): Fraction of training completed, t, in [0, 1].
        epoch (int): Epoch whose views are shown, starting at 0.
        seed (int): Random seed of the run.
        out (str | Path, optional): Also write the figure to this ``*.png`` or ``*.svg`` file.

    Returns:
        Figure: Matplotlib figure whose box patches are labeled ``'object'`` and ``'candidate'``.

    Raises:
        InputError: The config defines no training dataset, an argument is out of range, or the suffix of ``out`` is not
            supported.
    """
    if out is not None:
        check_figure_path(out)
    if not 0 <= progress <= 1:
        raise InputError(f'progress is the fraction of training completed, in [0, 1]; got {progress:g}')
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
        _plot_row(cells, [view[row] for view in views], sample, jitter, generator)
    if out is not None:
        save_figure(figure, out)
    return figure


def load_views(
    config: Config, indices: Sequence[int] | None = None, num: int = 4, epoch: int = 0, seed: int = 0
) -> tuple[list[np.ndarray], list[BaseDataElement]]:
    """Loads samples of a config's training dataset as the network receives them.

    Args:
        config (Config): Pre-training config.
        indices (Sequence[int], optional): Indices of images in the dataset. By default they are sampled at random.
        num (int): Maximum number of sampled images.
        epoch (int): Epoch whose views are loaded, starting at 0.
        seed (int): Random seed of the run.

    Returns:
        tuple[list, list]: Query and key views, each ``(B, H, W, 3)`` uint8 RGB with the normalization undone; and the
        data samples.

    Raises:
        InputError: The config defines no training dataset, or an index is out of range.
    """
    dataset = (config.get('train_dataloader') or {}).get('dataset')
    if dataset is None or 'model' not in config:
        raise InputError(f'{config.filename}: the config must define model and train_dataloader.dataset')
    init_default_scope(config.get('default_scope', 'mmselfsup'))
    dataset = DATASETS.build(dataset)
    if indices is None:
        indices = np.random.default_rng(seed).permutation(len(dataset))[:num].tolist()
    invalid = [index for index in indices if not 0 <= index < len(dataset)]
    if invalid or not len(indices):
        raise InputError(f'image indices must be from 0 to {len(dataset) - 1}; got {list(indices)}')
    batch = default_collate([dataset[SampleKey(seed, epoch, index)] for index in indices])
    settings = {'type': 'mmselfsup.TwoViewDataPreprocessor', **(config.model.get('data_preprocessor') or {})}
    preprocessor = MODELS.build(settings)
    prepared = preprocessor(batch)
    is_bgr = not settings.get('bgr_to_rgb', False)
    return [_to_pixels(view, preprocessor, is_bgr) for view in prepared['inputs']], prepared['data_samples']


def _to_pixels(view: torch.Tensor, preprocessor: nn.Module, is_bgr: bool) -> np.ndarray:
    """Undoes the normalization of a batch: (B, 3, H, W) -> (B, H, W, 3) uint8 RGB."""
    if hasattr(preprocessor, 'mean'):
        view = view * preprocessor.std + preprocessor.mean
    view = view.flip(1) if is_bgr else view
    return view.clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def object_colors(count: int) -> np.ndarray:
    """Returns ``(count, 3)`` RGB colors in [0, 1] with evenly spaced hues, alternating bright and dark."""
    hues = np.arange(count) / max(count, 1)
    values = np.where(np.arange(count) % 2, 0.75, 1.0)
    return hsv_to_rgb(np.stack([hues, np.full(count, 0.95), values], axis=1)) if count else np.zeros((0, 3))


def _plot_row(
    cells: list[Axes],
    views: list[np.ndarray],
    sample: BaseDataElement,
    jitter: SCSBoxJitter,
    generator: torch.Generator,
    num_objects: int = 3,
) -> None:
    label = sample.pseudo_label
    colors = object_colors(len(label.boxes_q))
    for axes, view in zip(cells, (views[0], views[1], views[1]), strict=True):
        height, width = view.shape[:2]
        # The extent places pixel edges, not pixel centers, at integers, as box coordinates do.
        axes.imshow(view, extent=(0, width, height, 0))
        axes.set_axis_off()
    for axes, boxes in zip(cells, (label.boxes_q, label.boxes_k), strict=False):
        add_boxes(axes, boxes, 'object', colors, linewidth=1.4)
    img_shape = views[1].shape[:2]
    candidates, valid = jitter.jitter(label.boxes_k, img_shape, generator)
    # Candidates of large objects are the easiest to distinguish.
    sides = label.boxes_k[:, 2:] - label.boxes_k[:, :2]
    for number in sides.prod(dim=1).argsort(descending=True)[:num_objects].tolist():
        valid_candidates = candidates[number][valid[number]]
        add_boxes(cells[2], valid_candidates, 'candidate', [colors[number]] * len(valid_candidates), linewidth=0.6)
        add_boxes(cells[2], label.boxes_k[number : number + 1], 'object', colors[number : number + 1], linewidth=1.8)
    name = str(sample.get('img_path', '')).rpartition('/')[2]
    cells[0].set_title(f'{name}: query, {len(colors)} objects in both views', fontsize=7, pad=3)
    cells[1].set_title('key', fontsize=7, pad=3)
    cells[2].set_title(
        f'jittered key boxes, $t = {jitter.progress:g}$, $\\zeta = {jitter.zeta:.2f}$, $\\beta = {jitter.beta:.2f}$',
        fontsize=7,
        pad=3,
    )

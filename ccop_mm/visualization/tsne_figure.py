"""Objects as points in the plane, the alike close together (paper, Figure 5)."""

import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from ccop_mm.errors import InputError
from ccop_mm.visualization.figure_file import check_figure_path, save_figure
from ccop_mm.visualization.palette import WIDTH, class_styles

#: t-SNE is fed so many principal components at most, as its authors advise: less noise, less work.
COMPONENTS = 50


def project(features: np.ndarray, seed: int = 0, perplexity: float = 30) -> np.ndarray:
    """t-SNE of L2-normalized features (van der Maaten and Hinton, 2008; scikit-learn's).

    On the unit sphere the squared Euclidean distance is twice one minus the cosine, so the neighbors are those of the
    kNN probe.

    Args:
        features (np.ndarray): (N, D), N at least 4.
        seed (int): Of the optimization.
        perplexity (float): About the number of neighbors that count; at most (N - 1) / 3, where objects are few.

    Returns:
        np.ndarray: (N, 2).

    Raises:
        InputError: If there are too few objects, or a feature is not finite.
    """
    if len(features) < 4:
        raise InputError(f't-SNE needs at least 4 objects, got {len(features)}')
    if not np.isfinite(features).all():
        raise InputError('t-SNE: a feature is not finite')
    features = np.asarray(features, np.float64)
    features = features / np.linalg.norm(features, axis=1, keepdims=True).clip(min=1e-12)
    components = min(COMPONENTS, *features.shape)
    reduced = PCA(components, random_state=seed).fit_transform(features)
    perplexity = min(perplexity, (len(features) - 1) / 3)
    return TSNE(init='pca', perplexity=perplexity, random_state=seed).fit_transform(reduced)


def class_names(annotation_file: str | Path) -> dict[int, str]:
    """Names of a COCO json's categories by id."""
    content = json.loads(Path(annotation_file).read_text(encoding='utf-8'))
    return {category['id']: category['name'] for category in content.get('categories', [])}


def draw_tsne(
    panels: dict[str, np.ndarray], labels: np.ndarray, names: dict[int, str], out: str | Path | None = None
) -> Figure:
    """Scatter plots side by side, a color and a marker for each class.

    Args:
        panels (dict[str, np.ndarray]): Title -> (N, 2) points.
        labels (np.ndarray): (N,) category ids.
        names (dict[int, str]): Category id -> name; ids without one are shown as numbers.
        out (str | Path, optional): Also write the figure to this ``*.png`` or ``*.svg``.

    Raises:
        InputError: If ``out`` has another suffix.
    """
    if out is not None:
        check_figure_path(out)
    present = sorted(set(labels.tolist()))
    # A letter of the legend is about 0.058 inches wide, a mark with its margins 0.3.
    longest = max(len(names.get(label, str(label))) for label in present)
    columns = max(1, int(WIDTH / (0.058 * longest + 0.3)))
    legend = 0.17 * -(-len(present) // columns) + 0.1
    side = (WIDTH - 0.1) / max(2, len(panels))
    figure = Figure(figsize=(WIDTH, side + 0.25 + legend), facecolor='white')
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    bottom = legend / (side + 0.25 + legend)
    figure.subplots_adjust(left=0.01, right=0.99, bottom=bottom, top=1 - 0.25 / (side + 0.25 + legend), wspace=0.03)
    styles = class_styles(len(present))
    for axes, (title, points) in zip(grid, panels.items(), strict=True):
        for label, (color, marker) in zip(present, styles, strict=True):
            mine = points[labels == label]
            axes.scatter(
                *mine.T, s=9, c=color, marker=marker, linewidths=0.7, alpha=0.8, label=names.get(label, str(label))
            )
        axes.set_title(title, fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_color('0.7')
    handles, texts = grid[0].get_legend_handles_labels()
    figure.legend(
        handles, texts, loc='lower center', ncols=columns, fontsize=7, frameon=False, handletextpad=0.1,
        columnspacing=1, borderpad=0.1, markerscale=1.3,
    )  # fmt: skip
    if out is not None:
        save_figure(figure, out)
    return figure

"""t-SNE projections of object features (paper, Figure 5)."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from ccop_mm.utils.errors import InputError
from ccop_mm.visualization.figure_file import check_figure_path, save_figure
from ccop_mm.visualization.palette import WIDTH, class_styles

#: Number of principal components passed to t-SNE, as its authors recommend to reduce noise and computation.
COMPONENTS = 50


def compute_tsne(features: np.ndarray, seed: int = 0, perplexity: float = 30) -> np.ndarray:
    """Projects L2-normalized features to the plane with t-SNE (van der Maaten and Hinton, 2008; scikit-learn).

    The squared Euclidean distance of normalized features is twice one minus their cosine similarity, so the neighbors
    are those of the kNN probe.

    Args:
        features (np.ndarray): (N, D) with N >= 4.
        seed (int): Random seed of the optimization.
        perplexity (float): Effective number of neighbors; reduced to (N - 1) / 3 if that is smaller.

    Returns:
        np.ndarray: (N, 2).

    Raises:
        InputError: There are fewer than four objects, or a feature is not finite.
    """
    if len(features) < 4:
        raise InputError(f't-SNE requires at least 4 objects, got {len(features)}')
    if not np.isfinite(features).all():
        num_non_finite = int((~np.isfinite(features).all(axis=1)).sum())
        raise InputError(
            f't-SNE: {num_non_finite} of {len(features)} features are non-finite; use an earlier checkpoint'
        )
    features = np.asarray(features, np.float64)
    features = features / np.linalg.norm(features, axis=1, keepdims=True).clip(min=1e-12)
    components = min(COMPONENTS, *features.shape)
    reduced = PCA(components, random_state=seed).fit_transform(features)
    perplexity = min(perplexity, (len(features) - 1) / 3)
    return TSNE(init='pca', perplexity=perplexity, random_state=seed).fit_transform(reduced)


def plot_tsne(
    panels: dict[str, np.ndarray], labels: np.ndarray, names: dict[int, str], out: str | Path | None = None
) -> Figure:
    """Plots scatter plots side by side, with a color and a marker for each class.

    Args:
        panels (dict[str, np.ndarray]): Title -> (N, 2) points.
        labels (np.ndarray): (N,) category ids.
        names (dict[int, str]): Category id -> name. An id without a name is shown as a number.
        out (str | Path, optional): Also write the figure to this ``*.png`` or ``*.svg`` file.

    Raises:
        InputError: The suffix of ``out`` is not supported.
    """
    if out is not None:
        check_figure_path(out)
    present = sorted(set(labels.tolist()))
    # Approximate widths in the legend: 0.058 inches per character, 0.3 per marker with its margins.
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
            members = points[labels == label]
            axes.scatter(
                *members.T, s=9, c=color, marker=marker, linewidths=0.7, alpha=0.8, label=names.get(label, str(label))
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

"""The two sizes of a study: ``small`` for a few CPU cores, ``full`` for a GPU."""

from dataclasses import dataclass
from pathlib import Path

CONFIGS = Path(__file__).resolve().parent / 'configs'


@dataclass(frozen=True)
class Setting:
    """The size of a study.

    Attributes:
        epochs (int): Pre-training epochs of CCOP.
        view (int): Side of a view in pixels, in pre-training and in the pointing game.
        knn_size (int): Short side of an image in the kNN probe. A view covers 0.6 of an image on average, so that
            objects have the same size as in pre-training.
        frozen_size (int): Short side of an image in the frozen-detector probe.
        anneal (bool): Whether the learning rate is annealed to 0. Otherwise the config's own schedule is kept: that of
            the start of a longer run.
        detector (str): Config file of the fine-tuned detector.
        class_agnostic (bool): Whether it detects all boxes as one class, which small data can measure.
        iterations (int | None): Length of the fine-tuning; None for that of the config.
    """

    epochs: int
    view: int
    knn_size: int
    frozen_size: int
    anneal: bool
    detector: str
    class_agnostic: bool
    iterations: int | None


SETTINGS = {
    'small': Setting(
        epochs=12,
        view=80,
        knn_size=96,
        frozen_size=128,
        anneal=False,
        detector='fcos_small.py',
        class_agnostic=True,
        iterations=300,
    ),
    'full': Setting(
        epochs=200,
        view=160,
        knn_size=208,
        frozen_size=256,
        anneal=True,
        detector='faster_rcnn_full.py',
        class_agnostic=False,
        iterations=None,
    ),
}

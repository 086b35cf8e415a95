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
        detector_epochs (dict[int, int]): Percentage of the labels -> epochs of fine-tuning.
    """

    epochs: int
    view: int
    knn_size: int
    frozen_size: int
    anneal: bool
    detector_epochs: dict[int, int]


SETTINGS = {
    'small': Setting(epochs=12, view=80, knn_size=96, frozen_size=128, anneal=False, detector_epochs={10: 12, 100: 6}),
    'full': Setting(
        epochs=200, view=160, knn_size=208, frozen_size=256, anneal=True, detector_epochs={10: 48, 100: 24}
    ),
}

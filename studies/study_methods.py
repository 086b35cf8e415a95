"""Methods that a study compares: row titles, plot styles, and how each one differs from CCOP."""

import runpy
from dataclasses import dataclass
from pathlib import Path

from ccop_mm.visualization.palette import COLORS

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Method:
    """A row of the study's tables.

    Attributes:
        title (str): Row label.
        color (str): Plot color.
        marker (str): Plot marker; unique, so that methods can be told apart in grayscale.
        ablation (bool): Whether ``configs/ablations/ccop-NAME_*.py`` holds the changes to CCOP.
        proposals (str): ``--method`` of tools/propose.py that generates its boxes.
    """

    title: str
    color: str
    marker: str
    ablation: bool = False
    proposals: str = 'selective-search'


#: In the order of the tables. ``random-bn`` has random weights and the batch norm statistics of one epoch; it separates
#: seeing the images from learning. ``no-object`` differs from MoCo v2 in its batch norm statistics, which mmselfsup's
#: MoCo does not split in one process. ``mocov2`` trains for as many epochs as CCOP, ``mocov2-time`` for as much time.
METHODS = {
    'random': Method('random weights', '#999999', 'o'),
    'random-bn': Method('random weights, batch norm statistics of the images', COLORS[6], 'v'),
    'mocov2': Method('MoCo v2, same number of images', COLORS[1], 's'),
    'mocov2-time': Method('MoCo v2, same training time', COLORS[5], 'D'),
    'no-object': Method('CCOP, image loss only', COLORS[3], 'P', ablation=True),
    'no-image': Method('CCOP without the image loss', COLORS[1], '>', ablation=True),
    'no-noise': Method('CCOP without box noise', COLORS[2], 'X', ablation=True),
    'no-curriculum': Method('CCOP with the final noise from the start', COLORS[4], '<', ablation=True),
    'no-intra': Method('CCOP without the intra-image loss', COLORS[2], '*', ablation=True),
    'one-bn-group': Method('CCOP with one group of batch norm statistics', COLORS[4], '8', ablation=True),
    'few-proposals': Method('CCOP with few proposals per image', COLORS[0], '1', ablation=True),
    'random-boxes': Method('CCOP on random boxes', COLORS[6], 'p', ablation=True, proposals='random'),
    'ground-truth-boxes': Method('CCOP on ground-truth boxes', COLORS[3], 'd', ablation=True, proposals='ground-truth'),
    'ccop': Method('CCOP', COLORS[0], '^'),
}
ABLATIONS = tuple(name for name, method in METHODS.items() if method.ablation)
DEFAULT_METHODS = ('random', 'mocov2', 'mocov2-time', 'ccop')

#: Former names, still accepted on the command line.
ALIASES = {'image': 'no-object', 'true-boxes': 'ground-truth-boxes'}


def read_ablation(name: str) -> dict:
    """Reads the settings that an ablation config changes, without those of its base configs.

    The base configs are full size; a study applies the same changes to its own small config. The settings must be
    literal: a config that refers to ``_base_`` variables cannot be read this way.

    Args:
        name (str): One of :data:`ABLATIONS`.

    Returns:
        dict: Setting name -> value.
    """
    variables = runpy.run_path(str(ROOT / f'configs/ablations/ccop-{name}_r50_fpn_800e_coco.py'))
    return {key: value for key, value in variables.items() if not key.startswith('_')}

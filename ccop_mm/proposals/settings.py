"""Settings of proposal generation."""

import math
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ccop_mm.utils.errors import InputError

#: Sources of candidate boxes: the rows of the paper's Table 5.
METHODS = ('selective-search', 'random', 'ground-truth')

#: Strategies of selective search, under OpenCV's names.
MODES = ('fast', 'quality', 'single')

#: Implementations of selective search: :mod:`ccop_mm.proposals.selective_search` and OpenCV's ximgproc.
ENGINES = ('native', 'opencv')

#: Rules of :func:`ccop_mm.proposals.selection.merge_boxes`.
MERGES = ('largest', 'smallest', 'random', 'average', 'none')

#: Defaults of the method ``'ground-truth'``: annotated boxes are used unfiltered.
GROUND_TRUTH_SETTINGS: dict[str, Any] = {'min_area': 0.0, 'max_aspect': math.inf, 'merge': 'none'}

#: Fields that only the method ``'selective-search'`` accepts.
SEARCH_SETTINGS = ('mode', 'engine', 'max_side')


def _setting(default: Any, help: str, choices: Collection[str] | None = None) -> Any:
    """Declares a dataclass field with the help text and the choices of its command line option."""
    return field(default=default, metadata={'help': help, 'choices': choices})


@dataclass(frozen=True)
class ProposalSettings:
    """How the proposals of an image are generated: candidate boxes, filtering, merging and sampling.

    Args:
        method (str): Source of the candidate boxes, one of :data:`METHODS`.
        mode (str): Strategy of selective search, one of :data:`MODES`.
        engine (str): Implementation of selective search, one of :data:`ENGINES`. Both return the same boxes.
        max_side (int): Images with a longer side are resized to this one for selective search; 0 disables resizing. A
            training view shows at least a fifth of the image area on 224 pixels and keeps boxes of at least 12 pixels
            there, which corresponds to boxes of 24 pixels in an image of 1,024 pixels. The longer side
            of COCO images is 640 pixels.
        min_area (float): Smallest area of a proposal in square pixels. The paper removes "area < 12^2".
        max_aspect (float): Upper bound, exclusive, of the longer side divided by the shorter side. The paper removes
            aspect ratios "outside (1/3, 3)".
        merge (str): Rule of :func:`~ccop_mm.proposals.selection.merge_boxes`, one of :data:`MERGES`.
        merge_iou (float): Boxes with a higher IoU are merged. The paper merges above 0.5.
        max_boxes (int): Maximum number of proposals stored per image. The authors' code stores 50, of which about 12
            are visible in both views.
        seed (int): Together with the image id, determines the sampled proposals, their order and random boxes.

    Raises:
        ValueError: If a value is out of range.
    """

    method: str = _setting('selective-search', "source of the boxes, see the paper's Table 5", METHODS)
    mode: str = _setting('fast', 'strategy of selective search', MODES)
    engine: str = _setting('native', "implementation of selective search: ccop_mm's or OpenCV's (slower)", ENGINES)
    max_side: int = _setting(1024, 'images with a longer side are resized for selective search, 0: never')
    min_area: float = _setting(144.0, 'smallest area in square pixels')
    max_aspect: float = _setting(3.0, 'upper bound of longer side / shorter side, exclusive')
    merge: str = _setting('largest', 'which one of overlapping boxes is kept', MERGES)
    merge_iou: float = _setting(0.5, 'boxes with a higher IoU are merged')
    max_boxes: int = _setting(100, 'maximum number of boxes stored per image, sampled at random')
    seed: int = _setting(0, 'random seed of sampling and of random boxes')

    def __post_init__(self) -> None:
        for setting in fields(self):  # 144 and 144.0 must give the same metadata
            convert: Any = setting.type
            object.__setattr__(self, setting.name, convert(getattr(self, setting.name)))
        for name, valid, expected in (
            ('method', self.method in METHODS, f'one of {", ".join(METHODS)}'),
            ('mode', self.mode in MODES, f'one of {", ".join(MODES)}'),
            ('engine', self.engine in ENGINES, f'one of {", ".join(ENGINES)}'),
            ('max_side', self.max_side == 0 or self.max_side >= 32, 'at least 32, or 0 for no limit'),
            ('min_area', 0 <= self.min_area < math.inf, 'at least 0 and finite'),
            ('max_aspect', self.max_aspect > 1, 'greater than 1'),
            ('merge', self.merge in MERGES, f'one of {", ".join(MERGES)}'),
            ('merge_iou', 0 < self.merge_iou <= 1, 'greater than 0 and at most 1'),
            ('max_boxes', self.max_boxes >= 1, 'at least 1'),
            ('seed', 0 <= self.seed < 2**32, 'from 0 to 2^32 - 1'),
        ):
            if not valid:
                raise ValueError(f'{name} must be {expected}, got {getattr(self, name)}')

    @classmethod
    def from_kwargs(cls, method: str = 'selective-search', **settings: Any) -> 'ProposalSettings':
        """Creates settings from the defaults of a method and explicit values.

        Args:
            method (str): One of :data:`METHODS`.
            **settings: Other fields. They replace the defaults of the method.

        Raises:
            ValueError: If a value is out of range, or a setting of selective search is given for another method.
            TypeError: If a name is not a field.
        """
        inapplicable = [name for name in SEARCH_SETTINGS if name in settings and method != 'selective-search']
        if inapplicable:
            raise ValueError(f'{inapplicable[0]} applies to the method selective-search only, not to {method}')
        defaults = GROUND_TRUTH_SETTINGS if method == 'ground-truth' else {}
        return cls(method=method, **{**defaults, **settings})

    def to_json(self) -> dict[str, Any]:
        """Returns the fields that apply to the method; an infinite value becomes None."""
        inapplicable = () if self.method == 'selective-search' else SEARCH_SETTINGS
        values = {name: value for name, value in asdict(self).items() if name not in inapplicable}
        return {name: None if value == math.inf else value for name, value in values.items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> 'ProposalSettings':
        """Reads the settings from the metadata of a proposals file.

        Args:
            values (dict): Metadata; keys that are not fields are ignored.

        Raises:
            InputError: If a value is invalid.
            KeyError: If the boxes were not generated by one of :data:`METHODS`, for example if they were imported.
        """
        known = {setting.name for setting in fields(cls)} & set(values)
        settings = {name: values[name] for name in known}
        if settings.get('max_aspect', 0) is None:
            settings['max_aspect'] = math.inf
        if values.get('method') is None and 'mode' in known:  # format 1 had neither "method" nor "engine"
            settings.update(method='selective-search', engine='opencv', max_side=0)
        if settings.get('method') not in METHODS:
            raise KeyError('method')
        try:
            return cls(**settings)
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(f'invalid settings in the metadata of the proposals file: {error}') from None

"""How boxes are found and selected."""

import math
from dataclasses import asdict, dataclass, fields

from ccop_mm.errors import InputError
from ccop_mm.proposals.search import ENGINES, MODES, require_search
from ccop_mm.proposals.select import MERGES

#: Where boxes come from: the rows of the paper's Table 5.
METHODS = ('selective-search', 'random', 'ground-truth')

#: True boxes are taken as they are: the paper's rules make objects of what a search finds.
TRUE_BOX_RULES = {'min_area': 0.0, 'max_aspect': math.inf, 'merge': 'none'}

#: What concerns the search alone.
SEARCH_RULES = ('mode', 'engine', 'max_side')


@dataclass(frozen=True)
class Rules:
    """How boxes are found and selected; see :mod:`ccop_mm.proposals.select` for the sources of the numbers."""

    method: str = 'selective-search'
    mode: str = 'fast'
    engine: str = 'native'
    #: A photo with a longer side is searched at this size; 0: at its own. A view of the pre-training shows a fifth of
    #: a photo or more on 224 pixels, and a box in it is 12 pixels wide or more: 24 of 1,024 pixels. Photos of COCO
    #: have 640.
    max_side: int = 1024
    min_area: float = 144.0
    max_aspect: float = 3.0
    merge: str = 'largest'
    merge_iou: float = 0.5
    #: The released code keeps 50 a photo and 12 reach a step on average; 100 leave a choice.
    max_boxes: int = 100
    #: Decides, with the image id, which boxes are kept and in what order, and where random boxes lie.
    seed: int = 0

    def __post_init__(self):
        for field in fields(self):  # 144 and 144.0 are the same rule and give the same file
            object.__setattr__(self, field.name, field.type(getattr(self, field.name)))
        for name, fits, needs in (
            ('method', self.method in METHODS, f'one of {", ".join(METHODS)}'),
            ('mode', self.mode in MODES, f'one of {", ".join(MODES)}'),
            ('engine', self.engine in ENGINES, f'one of {", ".join(ENGINES)}'),
            ('max_side', self.max_side == 0 or self.max_side >= 32, '32 or more, or 0 for no limit'),
            ('min_area', 0 <= self.min_area < math.inf, '0 or more'),
            ('max_aspect', self.max_aspect > 1, 'more than 1'),
            ('merge', self.merge in MERGES, f'one of {", ".join(MERGES)}'),
            ('merge_iou', 0 < self.merge_iou <= 1, 'more than 0 and at most 1'),
            ('max_boxes', self.max_boxes >= 1, '1 or more'),
            ('seed', 0 <= self.seed < 2**32, 'from 0 to 2^32 - 1'),
        ):
            if not fits:
                raise InputError(f'{name} is {getattr(self, name)} and must be {needs}')

    def require(self):
        """Raises :class:`InputError` if the boxes cannot be found here, for want of the search engine."""
        if self.method == 'selective-search':
            require_search(self.mode, self.engine)

    @classmethod
    def of(cls, method='selective-search', **given):
        """The rules that are customary for a method, but for those given.

        Raises:
            InputError: If a value is out of range, or a rule of the search is given for another method.
        """
        strange = [name for name in SEARCH_RULES if name in given and method != 'selective-search']
        if strange:
            raise InputError(f'{strange[0]} concerns the method selective-search, not {method}')
        return cls(method=method, **{**(TRUE_BOX_RULES if method == 'ground-truth' else {}), **given})

    def to_json(self):
        """dict: The rules that matter to the method; no limit is None."""
        irrelevant = () if self.method == 'selective-search' else SEARCH_RULES
        values = {name: value for name, value in asdict(self).items() if name not in irrelevant}
        return {name: None if value == math.inf else value for name, value in values.items()}

    @classmethod
    def from_json(cls, values):
        """The rules in a store's metadata.

        Raises:
            InputError: As the constructor.
            KeyError: If they are not rules of these methods, as those of imported boxes.
        """
        known = {field.name for field in fields(cls)} & set(values)
        given = {name: values[name] for name in known}
        if given.get('max_aspect', 0) is None:
            given['max_aspect'] = math.inf
        if values.get('method') is None and 'mode' in known:  # written by the first version
            given.update(method='selective-search', engine='opencv', max_side=0)
        if given.get('method') not in METHODS:
            raise KeyError('method')
        try:
            return cls(**given)
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(f'the rules in its metadata cannot be read: {error}') from None

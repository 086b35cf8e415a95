"""Choice of the learning rate of each initial weights and share, as pure functions."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ccop_mm.utils.errors import InputError

#: AP decides between learning rates if a run of the share reaches this value, otherwise AP50.
MIN_AP = 0.05


@dataclass(frozen=True)
class ChosenRate:
    """Learning rate of one initial weights at one share.

    Args:
        factor (float): Multiple of the detector's learning rate.
        metric (str): ``'AP'`` or ``'AP50'``, the metric on the selection split that decided; ``''`` if there was no
            choice.
        values (dict[float, float]): Factor -> metric of the runs to choose from.
        edge (str): ``'lowest'`` or ``'highest'`` if it is the first or last of several factors; otherwise ``''``.
    """

    factor: float
    metric: str = ''
    values: Mapping[float, float] | None = None
    edge: str = ''


def check_factors(factors: Sequence[float]) -> list[float]:
    """Sorts the factors of the learning rate.

    Raises:
        InputError: There is none, one is not a positive number, or one occurs twice.
    """
    invalid = [factor for factor in factors if not (math.isfinite(factor) and factor > 0)]
    if not factors or invalid or len(set(factors)) < len(factors):
        raise InputError(f'the factors of the learning rate must be different positive numbers, got {list(factors)}')
    return sorted(factors)


def choose_metric(results: Sequence[Mapping[str, float]]) -> str:
    """Returns the metric that decides at a share, the same for all initial weights.

    With few labels and random weights, AP is below a few percent, and mostly noise: AP50 then ranks the runs better.

    Args:
        results (Sequence[Mapping]): Metrics on the selection split of all runs of a share.
    """
    return 'AP' if any(metrics['AP'] >= MIN_AP for metrics in results) else 'AP50'


def choose_factor(results: Mapping[float, Mapping[str, float]], metric: str) -> ChosenRate:
    """Chooses the factor with the highest metric; of equal ones, that closest to 1, then the smaller one.

    Args:
        results (Mapping[float, Mapping]): Factor -> metrics on the selection split; at least one.
        metric (str): ``'AP'`` or ``'AP50'``.
    """
    factors = sorted(results)
    best = max(factors, key=lambda factor: (results[factor][metric], -abs(math.log(factor)), -factor))
    edges = {factors[0]: 'lowest', factors[-1]: 'highest'} if len(factors) > 1 else {}
    values = {factor: results[factor][metric] for factor in factors}
    return ChosenRate(best, metric, values, edges.get(best, ''))


def extend_factors(factors: Sequence[float], edge: str) -> float:
    """Returns the factor beyond an edge of a grid, at the distance of the last two.

    Args:
        factors (Sequence[float]): At least two factors in ascending order.
        edge (str): ``'lowest'`` or ``'highest'``.
    """
    if edge == 'lowest':
        return float(f'{factors[0] * factors[0] / factors[1]:.4g}')
    return float(f'{factors[-1] * factors[-1] / factors[-2]:.4g}')

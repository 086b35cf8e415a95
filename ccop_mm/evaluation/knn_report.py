"""Object kNN recall of backbone features and embeddings, compared with chance (paper, Table 9)."""

from torch import Tensor

from ccop_mm.evaluation.knn_recall import DEFAULT_KS, chance_recall, knn_recall

#: Feature names of :func:`ccop_mm.evaluation.extract_object_features` -> column titles.
FEATURES = {'backbone': 'backbone feature', 'embedding': 'embedding'}


def knn_report(
    features: dict[str, Tensor], ks: tuple[int, ...] = DEFAULT_KS, chunk_size: int = 512
) -> dict[str, float]:
    """Computes the metrics of Table 9 as a flat dict, the format that loggers expect.

    Args:
        features (dict[str, Tensor]): Result of :func:`ccop_mm.evaluation.extract_object_features`.
        ks (tuple[int, ...]): Numbers of neighbors; values that reach the number of objects are omitted.
        chunk_size (int): See :func:`ccop_mm.evaluation.knn_recall`.

    Returns:
        dict[str, float]: ``num_objects``, ``num_classes``, ``chance``, and for each k the recall ``backbone@k`` and, if
        ``features`` contains embeddings, ``embedding@k``. Recalls and chance are in [0, 1].

    Raises:
        InputError: There are fewer than two objects, or a feature is not finite.
    """
    labels = features['labels']
    report = {'num_objects': len(labels), 'num_classes': len(labels.unique()), 'chance': chance_recall(labels)}
    for name in [name for name in FEATURES if name in features]:
        recalls = knn_recall(features[name], labels, ks, chunk_size)
        report.update({f'{name}@{k}': recall for k, recall in recalls.items()})
    return report


def format_knn_report(report: dict[str, float]) -> str:
    """Formats a report as a text table in percent, without a trailing newline."""
    shown = [name for name in FEATURES if any(key.startswith(f'{name}@') for key in report)]
    lines = [
        f'object kNN recall in %, {report["num_objects"]} objects of {report["num_classes"]} classes',
        ''.join(['    k', *(f'{FEATURES[name]:>20}' for name in shown), f'{"chance":>10}']),
    ]
    for k in [key.split('@')[1] for key in report if key.startswith('backbone@')]:
        values = ''.join(f'{100 * report[f"{name}@{k}"]:>20.1f}' for name in shown)
        lines.append(f'{k:>5}{values}{100 * report["chance"]:>10.1f}')
    return '\n'.join(lines)

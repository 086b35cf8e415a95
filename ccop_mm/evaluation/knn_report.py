"""Object kNN recall of backbone features and of embeddings, side by side with chance (paper, Table 9)."""

from torch import Tensor

from ccop_mm.evaluation.knn_recall import DEFAULT_KS, chance_recall, knn_recall

#: What is compared, named as :func:`ccop_mm.evaluation.extract_object_features` does, and the title of its column.
FEATURES = {'backbone': 'backbone feature', 'embedding': 'embedding'}


def knn_report(
    features: dict[str, Tensor], ks: tuple[int, ...] = DEFAULT_KS, chunk_size: int = 512
) -> dict[str, float]:
    """The numbers of Table 9, flat, as a logger takes them.

    Args:
        features (dict[str, Tensor]): From :func:`ccop_mm.evaluation.extract_object_features`.
        ks (tuple[int, ...]): Numbers of neighbors; those that the objects do not suffice for are left out.
        chunk_size (int): See :func:`ccop_mm.evaluation.knn_recall`.

    Returns:
        dict[str, float]: ``num_objects``, ``num_classes``, ``chance``, and for each k the recalls ``backbone@k`` and,
        if there are embeddings, ``embedding@k``, in [0, 1].

    Raises:
        InputError: If there are fewer than two objects, or a feature is not finite.
    """
    labels = features['labels']
    report = {'num_objects': len(labels), 'num_classes': len(labels.unique()), 'chance': chance_recall(labels)}
    for name in [name for name in FEATURES if name in features]:
        recalls = knn_recall(features[name], labels, ks, chunk_size)
        report.update({f'{name}@{k}': recall for k, recall in recalls.items()})
    return report


def format_knn_report(report: dict[str, float]) -> str:
    """A report as a table in per cent, for the terminal; no trailing newline."""
    shown = [name for name in FEATURES if any(key.startswith(f'{name}@') for key in report)]
    lines = [
        f'object kNN recall in %, {report["num_objects"]} objects of {report["num_classes"]} classes',
        ''.join(['    k', *(f'{FEATURES[name]:>20}' for name in shown), f'{"chance":>10}']),
    ]
    for k in [key.split('@')[1] for key in report if key.startswith('backbone@')]:
        values = ''.join(f'{100 * report[f"{name}@{k}"]:>20.1f}' for name in shown)
        lines.append(f'{k:>5}{values}{100 * report["chance"]:>10.1f}')
    return '\n'.join(lines)

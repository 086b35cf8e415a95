from itertools import permutations

import numpy as np
import pytest
import torch

from ccop_mm.evaluation import chance_recall, knn_recall
from ccop_mm.utils.errors import InputError

KS = (1, 3, 10, 39)


def brute_force(features, labels, k, order=None):
    """Computes the recall by definition, one object at a time; ties are resolved in the given order."""
    order = range(len(labels)) if order is None else order
    recalls = []
    for i in range(len(labels)):
        distances = []
        for j in order:
            norm = np.linalg.norm(features[i]) * np.linalg.norm(features[j])
            distance = 1 - features[i] @ features[j] / norm if norm else 1.0
            if i != j:
                distances.append((distance, j))
        nearest = sorted(distances, key=lambda pair: pair[0])[:k]
        recalls.append(np.mean([labels[j] == labels[i] for _, j in nearest]))
    return np.mean(recalls)


def random_objects(seed, count=40, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, 8, generator=generator, dtype=dtype) * torch.rand(count, 1, generator=generator) * 9
    return features, torch.randint(5, (count,), generator=generator)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('seed', range(3))
def test_matches_brute_force(seed, dtype):
    features, labels = random_objects(seed, dtype=dtype)
    recalls = knn_recall(features, labels, KS)
    assert list(recalls) == list(KS)
    for k in KS:
        assert recalls[k] == pytest.approx(brute_force(features.numpy(), labels.numpy(), k), abs=1e-12)


@pytest.mark.parametrize('chunk_size', [1, 7, 40, 1000])
def test_result_does_not_depend_on_chunk_size(chunk_size):
    features, labels = random_objects(3)
    assert knn_recall(features, labels, KS, chunk_size) == pytest.approx(knn_recall(features, labels, KS, 13))


def test_ties_are_averaged_over_all_orders():
    # Axis-aligned vectors and a zero vector have similarities of exactly 1, 0 and -1, with many ties.
    features = torch.tensor([[1.0, 0], [2, 0], [0, 1], [0, 0], [-1, 0], [0, 5]])
    labels = torch.tensor([0, 1, 0, 0, 1, 1])
    recalls = knn_recall(features, labels, (1, 2, 3, 4))
    for k, recall in recalls.items():
        mean = np.mean([brute_force(features.numpy(), labels.numpy(), k, order) for order in permutations(range(6))])
        assert recall == pytest.approx(mean, abs=1e-12)


def test_collapsed_features_score_chance():
    # Classes are in contiguous blocks, so resolving ties by row number would give a recall above chance.
    labels = torch.arange(12).repeat_interleave(torch.arange(1, 13))
    features = torch.randn(1, 128, generator=torch.Generator().manual_seed(0)).expand(len(labels), -1)
    for recall in knn_recall(features, labels, (1, 5, 50)).values():
        assert recall == pytest.approx(chance_recall(labels), abs=1e-12)


def test_half_precision_is_computed_in_float32():
    features, labels = random_objects(4, dtype=torch.bfloat16)
    assert knn_recall(features, labels, KS) == knn_recall(features.float(), labels, KS)


def test_too_large_k_is_omitted():
    features, labels = random_objects(5, count=6)
    assert list(knn_recall(features, labels, (1, 5, 6, 100))) == [1, 5]
    assert knn_recall(features, labels, (6,)) == {}


def test_all_neighbors_score_chance():
    features, labels = random_objects(6)
    assert knn_recall(features, labels, (39,))[39] == pytest.approx(chance_recall(labels))


@pytest.mark.parametrize('labels', [[3, 3, 8, 8, 8, 1], [0, 1], [4, 4, 4]])
def test_chance_is_the_mean_over_all_pairs(labels):
    pairs = [labels[i] == labels[j] for i in range(len(labels)) for j in range(len(labels)) if i != j]
    assert chance_recall(torch.tensor(labels)) == pytest.approx(np.mean(pairs))


def test_bad_input():
    features, labels = random_objects(7)
    with pytest.raises(InputError, match='got 1'):
        knn_recall(features[:1], labels[:1])
    with pytest.raises(InputError, match='got 0'):
        chance_recall(labels[:0])
    features[3, 0], features[5, 7] = torch.nan, torch.inf
    with pytest.raises(InputError, match='2 of 40'):
        knn_recall(features, labels)
    with pytest.raises(ValueError, match=r'\(40, 8\).*\(39,\)'):
        knn_recall(features, labels[:-1])
    with pytest.raises(ValueError, match=r'\(0, 5\)'):
        knn_recall(features.nan_to_num(), labels, (0, 5))

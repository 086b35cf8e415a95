import math

import numpy as np
import pytest
import torch

from ccop_mm.evaluation.collapse import effective_rank, embedding_std


@pytest.mark.parametrize('shape', [(50, 8), (5, 20), (1, 3)])
def test_effective_rank_matches_definition(shape, generator):
    embeddings = torch.randn(shape, generator=generator, dtype=torch.float64)
    values = np.linalg.svd(embeddings.numpy(), compute_uv=False)
    entropy = -sum(weight * math.log(weight) for weight in values / values.sum())
    assert effective_rank(embeddings).item() == pytest.approx(math.exp(entropy), rel=1e-5)


def test_effective_rank_of_known_directions(generator):
    basis = torch.eye(16)[:5].repeat_interleave(20, 0)
    assert effective_rank(basis).item() == pytest.approx(5)
    same = torch.randn(1, 16, generator=generator).expand(30, -1)
    assert effective_rank(same).item() == pytest.approx(1, abs=1e-3)
    assert effective_rank(torch.zeros(4, 16)).item() == 0
    sphere = torch.randn(20000, 16, generator=generator)
    assert effective_rank(sphere).item() == pytest.approx(16, abs=0.1)


def test_embedding_std(generator):
    assert embedding_std(torch.ones(30, 16)).item() == pytest.approx(0, abs=1e-6)
    assert embedding_std(torch.randn(20000, 16, generator=generator)).item() == pytest.approx(1, abs=0.01)
    half = torch.cat([torch.ones(10, 16), -torch.ones(10, 16)])
    assert embedding_std(half * 7).item() == pytest.approx(1)

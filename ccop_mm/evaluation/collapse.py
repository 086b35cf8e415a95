"""Measures of representation collapse: effective rank and standard deviation of embeddings."""

import torch
import torch.nn.functional as F
from torch import Tensor


def effective_rank(embeddings: Tensor) -> Tensor:
    """Computes the effective rank: the exponential of the entropy of the normalized singular values.

    Definition by Roy and Vetterli, *The effective rank: a measure of effective dimensionality*, EUSIPCO 2007; used to
    monitor self-supervised pre-training by Garrido et al., *RankMe*, ICML 2023. The value is 1 if all embeddings are
    parallel and D if they have no preferred direction. The mean is not subtracted, so embeddings with small deviations
    from one common vector count as collapsed.

    Args:
        embeddings (Tensor): ``(N, D)`` with N >= 1, finite. Computed in float64 from a D x D matrix.

    Returns:
        Tensor: Scalar on the same device; 0 if all embeddings are zero.
    """
    embeddings = embeddings.double()
    # The eigenvalues of the Gram matrix are the squared singular values; the matrix is D x D for any N.
    values = torch.linalg.eigvalsh(embeddings.T @ embeddings).clamp(min=0).sqrt()
    weights = values / values.sum().clamp(min=torch.finfo(values.dtype).tiny)
    return torch.where(values.sum() > 0, torch.special.entr(weights).sum().exp(), torch.zeros_like(values[0]))


def embedding_std(embeddings: Tensor) -> Tensor:
    """Computes the standard deviation of L2-normalized embeddings, averaged over dimensions and multiplied by sqrt(D).

    The value is 0 if all normalized embeddings are equal and 1 if they are uniformly distributed on the sphere (Chen
    and He, *Exploring Simple Siamese Representation Learning*, CVPR 2021, Sec. 4.1).

    Args:
        embeddings (Tensor): ``(N, D)`` with N >= 1.

    Returns:
        Tensor: Scalar on the same device.
    """
    normalized = F.normalize(embeddings.double(), dim=1)
    return normalized.std(dim=0, correction=0).mean() * normalized.shape[1] ** 0.5

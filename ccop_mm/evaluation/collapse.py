"""Signs of collapse: how many directions embeddings use, and how far they spread."""

import torch
import torch.nn.functional as F
from torch import Tensor


def effective_rank(embeddings: Tensor) -> Tensor:
    """The number of directions that embeddings use: the exponential of the entropy of their singular values' shares.

    Roy and Vetterli, *The effective rank: a measure of effective dimensionality*, EUSIPCO 2007. It is 1 where all
    embeddings are equal or opposite, and D where no direction is preferred; the mean is not subtracted, so embeddings
    that differ little from one vector count as collapsed.

    Args:
        embeddings (Tensor): ``(N, D)``, N at least 1, finite. Computed in float64 from D x D numbers.

    Returns:
        Tensor: A scalar on the same device; 0 if all embeddings are zero.
    """
    embeddings = embeddings.double()
    # Singular values are roots of the Gram matrix's eigenvalues: D x D whatever N is.
    values = torch.linalg.eigvalsh(embeddings.T @ embeddings).clamp(min=0).sqrt()
    shares = values / values.sum().clamp(min=torch.finfo(values.dtype).tiny)
    return torch.where(values.sum() > 0, torch.special.entr(shares).sum().exp(), torch.zeros_like(values[0]))


def embedding_spread(embeddings: Tensor) -> Tensor:
    """Standard deviation of normalized embeddings, times sqrt(D): 0 where all are equal, 1 where they are spread evenly
    over the sphere (Chen and He, *Exploring Simple Siamese Representation Learning*, CVPR 2021, Sec. 4.1).

    Args:
        embeddings (Tensor): ``(N, D)``, N at least 1.

    Returns:
        Tensor: A scalar on the same device.
    """
    normalized = F.normalize(embeddings.double(), dim=1)
    return normalized.std(dim=0, correction=0).mean() * normalized.shape[1] ** 0.5

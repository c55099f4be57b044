"""Directions of Performer's random features."""

import torch
from torch import Tensor

from ..shapes import ceil_div


def orthogonal_features(number: int, width: int, seed: int = 0) -> Tensor:
    """Draw orthogonal Gaussian vectors, always the same for the same arguments.

    Performer (arXiv 2009.14794, §2.4): the vectors of each block of ``width`` are orthogonal, and
    each has the distribution of a vector of independent standard normal numbers.

    Args:
        number: number F of vectors.
        width: channels d of a head.
        seed: seed of the random numbers.

    Returns:
        ``(F, d)`` in fp32 on the CPU.
    """
    generator = torch.Generator().manual_seed(seed)
    options = dict(generator=generator, device='cpu', dtype=torch.float32)
    blocks = torch.randn(ceil_div(number, width), width, width, **options)
    # The factor Q is uniformly distributed if R has a positive diagonal.
    directions, triangles = torch.linalg.qr(blocks)
    directions = directions * triangles.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
    lengths = torch.randn(number, width, **options).norm(dim=-1, keepdim=True)
    return lengths * directions.mT.flatten(0, 1)[:number]

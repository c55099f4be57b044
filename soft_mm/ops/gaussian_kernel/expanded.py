"""The Gaussian kernel from one matrix product."""

import torch
from torch import Tensor

from ..precision import at_least_fp32


def centred(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Subtract the mean of k from both sets."""
    # Distances do not change, but the terms of the expansion become as small as the relevant
    # distances, so their sum does not lose digits to cancellation.
    centre = k.mean(-2, keepdim=True)
    return q - centre, k - centre


def augmented(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``(q, -½‖q‖², 1)`` and ``(k, 1, -½‖k‖²)``, whose product is the full exponent."""
    (q_norm, q_one), (k_norm, k_one) = (
        (x.square().sum(-1, keepdim=True).mul_(-0.5), x.new_ones(*x.shape[:-1], 1)) for x in (q, k)
    )
    return torch.cat((q, q_norm, q_one), -1), torch.cat((k, k_one, k_norm), -1)


@at_least_fp32
def expansion(q: Tensor, k: Tensor) -> Tensor:
    """Gaussian kernel: q ``(..., N, d)``, k ``(..., m, d)`` -> ``(..., N, m)``."""
    q, k = augmented(*centred(q, k))
    return (q @ k.mT).clamp_(max=0).exp_()

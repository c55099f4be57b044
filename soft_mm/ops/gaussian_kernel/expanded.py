"""The Gaussian kernel from one matrix product, with its gradient in closed form."""

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


def expansion(q: Tensor, k: Tensor) -> Tensor:
    """Gaussian kernel: q ``(..., N, d)``, k ``(..., m, d)`` -> ``(..., N, m)``."""
    q, k = augmented(*centred(q, k))
    return (q @ k.mT).clamp_(max=0).exp_()


expanded_gaussian_kernel = torch.library.custom_op(
    'soft_mm::gaussian_kernel', expansion, mutates_args=()
)


@expanded_gaussian_kernel.register_fake
def _(q: Tensor, k: Tensor) -> Tensor:
    return q.new_empty(*q.shape[:-1], k.shape[-2])


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs, output)


@at_least_fp32
def _backward(ctx, grad: Tensor):
    q, k, kernel = ctx.saved_tensors
    q, k = centred(q, k)
    grad = grad * kernel
    grad_q = grad @ k - grad.sum(-1).unsqueeze(-1) * q
    grad_k = grad.mT @ q - grad.sum(-2).unsqueeze(-1) * k
    return grad_q, grad_k


expanded_gaussian_kernel.register_autograd(_backward, setup_context=_setup_context)

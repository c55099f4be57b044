"""A linear layer."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backend import choose_backend
from . import onednn


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, backend: str | None = None
) -> Tensor:
    """Compute ``W·x + b`` for every token, as :func:`torch.nn.functional.linear` does.

    Args:
        x: ``(..., C)``, any strides.
        weight: ``(E, C)``, any strides.
        bias: ``(E,)``.
        backend: on a CPU in fp32, oneDNN computes large products, unless the backend is 'reference'
            or 'standard'.

    Returns:
        ``(..., E)``.

    Raises:
        ValueError: if the backend does not exist.
    """
    inputs = x, weight, bias
    return _Linear.apply(*inputs) if _runs_onednn(*inputs, backend) else F.linear(*inputs)


def linear_gelu(
    x: Tensor, weight: Tensor, bias: Tensor, approximate: str, backend: str | None = None
) -> Tensor:
    """Compute ``gelu(W·x + b)``, by oneDNN in one pass if no gradient is needed.

    Args:
        x, weight, bias, backend: see :func:`linear`.
        approximate: approximation of GELU, 'none' or 'tanh', as in ``torch.nn.GELU``.
    """
    inputs = x, weight, bias
    needs_grad = torch.is_grad_enabled() and any(t.requires_grad for t in inputs)
    if needs_grad or not _runs_onednn(*inputs, backend):
        return F.gelu(linear(*inputs, backend), approximate=approximate)
    return onednn.linear(*inputs, approximate)


def weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """Gradient ``(E, C)`` of the weight from that of the result, ``(N, E)``, and x ``(N, C)``."""
    # oneDNN distributes the rows of the result to the threads; with fewer rows, each reads less.
    if grad.shape[1] > x.shape[1]:
        return linear(x.T, grad.T).T
    return linear(grad.T, x.T)


def _runs_onednn(x: Tensor, weight: Tensor, bias: Tensor | None, backend: str | None) -> bool:
    standard = choose_backend(backend, x.device) in ('reference', 'standard')
    return not standard and onednn.supports(x, weight, bias)


class _Linear(torch.autograd.Function):
    """By oneDNN; the gradients are linear layers too."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return onednn.linear(x, weight, bias)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        tokens = grad.flatten(0, -2)
        return (
            linear(grad, weight.T) if needs_x else None,
            weight_gradient(tokens, x.flatten(0, -2)) if needs_weight else None,
            tokens.sum(0) if needs_bias else None,
        )

"""Newton's iterations as one rational function with one pole: an inverse and a few products."""

import math
from collections.abc import Callable, Iterator
from functools import cache
from types import ModuleType

import torch
from numpy.polynomial import chebyshev
from torch import Tensor

from ..precision import at_least_fp32
from . import onednn_kernels, torch_kernels

DEGREE = 28
POLE = 2.2
# Elements of the matrices of a batch: on a CPU they stay in the cache.
BATCH = {'cpu': 2**18, 'cuda': 2**24}
# For smaller matrices the iteration is as fast. That of Triton is one launch up to 64 rows; beyond, its
# 40 products of m×m matrices are estimated, not measured, to take longer than this op's kernels.
MIN_SIZE = {'torch': 128, 'triton': 65}
# From this many iterations on, the exponential approximates the power to fp32 precision.
MIN_ITERATIONS = 20


def is_worthwhile(m: int, iterations: int, fused: bool) -> bool:
    """Whether the rational function is accurate and faster than iterating."""
    return m >= MIN_SIZE['triton' if fused else 'torch'] and iterations >= MIN_ITERATIONS


@cache
def coefficients() -> list[float]:
    """Chebyshev coefficients of ``g(r) = h(t) / (r(1 − r))`` for ``0 < r = c/(t + c) ≤ 1``.

    ``h(t) = (1 − e^{-t²})/t``; the relative error of g is below 2.2e-6 for every t.
    """

    def g(x):
        r = (x + 1) / 2
        t = POLE * (1 / r - 1)
        return [-math.expm1(-(t**2)) / t / (r * (1 - r)) for t, r in zip(t, r)]

    return chebyshev.chebinterpolate(g, DEGREE).tolist()


def rational_newton_solve(
    p: Tensor, v: Tensor, alpha: Tensor, iterations: int, fused: bool
) -> Tensor:
    """p ``(..., m, m)``, v ``(..., m, e)``, alpha ``(..., 1, 1)`` -> ``(..., m, e)``."""
    root = alpha.sqrt() * 2.0 ** (iterations / 2)
    return _newton_solve(p, v, root, fused)[0]


def forward(p: Tensor, v: Tensor, root: Tensor, fused: bool) -> tuple[Tensor, Tensor]:
    """The result ``(..., m, e)`` from root √s ``(..., 1, 1)``, and for the backward pass I − ρ."""
    out, complement = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (v, p))
    for batch in _batches(complement, p, root):
        _kernels(p, fused).factor(*batch, POLE)
    _write(out, complement, p, v, root, fused)
    return out, complement


def backward(grad: Tensor, p: Tensor, complement: Tensor, root: Tensor, fused: bool) -> Tensor:
    """Gradient of v from that of the result, both ``(..., m, e)``."""
    out = torch.empty_like(grad, memory_format=torch.contiguous_format)
    _write(out, complement, p, grad, root, fused)
    return out


_newton_solve = torch.library.custom_op('soft_mm::newton_solve', forward, mutates_args=())
_newton_solve_backward = torch.library.custom_op(
    'soft_mm::newton_solve_backward', backward, mutates_args=()
)


def _kernels(p: Tensor, fused: bool) -> ModuleType:
    if fused:
        from . import triton_kernels

        return triton_kernels
    return onednn_kernels if onednn_kernels.supports(p) else torch_kernels


def _batches(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Flatten the leading dimensions and split them into batches of at most BATCH elements."""
    flat = [x.contiguous().view(-1, *x.shape[-2:]) for x in tensors]
    elements = BATCH.get(flat[0].device.type, BATCH['cuda'])
    size = max(1, elements // max(1, *(x[:1].numel() for x in flat)))
    return zip(*(x.split(size) for x in flat))


def _write(
    out: Tensor, complement: Tensor, p: Tensor, v: Tensor, root: Tensor, fused: bool
) -> None:
    """Write the result for v ``(..., m, e)`` to ``out``, from I − ρ, in batches."""
    product = _kernels(p, fused).product
    for part, matrix, *batch in _batches(out, complement, p, v, root):
        product(matrix, apply(matrix, *batch, product), 1, out=part)


def apply(complement: Tensor, p: Tensor, v: Tensor, root: Tensor, product: Callable) -> Tensor:
    """``√s g(ρ) ρ v`` ``(L, m, e)`` for the complement I − ρ of ρ, by which it is still to multiply."""
    # z = ρ v = δ (P + δI)⁻¹ v. For large eigenvalues, where ρ is small, v − (I − ρ) v loses digits;
    # a step of iterative refinement, with the residual divided by δ, restores them.
    z = product(complement, v, -1, (1, v))
    residual = product(p, root * z, -1 / POLE, (1, v), (-1, z))
    z = product(complement, residual, -1, (1, residual), (1, z))
    # Clenshaw's recurrence for y = g(ρ) z. The Chebyshev argument is 2ρ − I.
    first, *others, c, last = coefficients()
    before, y = last * z, product(complement, z, -4 * last, (2 * last + c, z))
    for c in reversed(others):
        before, y = y, product(complement, y, -4, (2, y), (-1, before), (c, z))
    return root * product(complement, y, -2, (1, y), (-1, before), (first, z))


@_newton_solve.register_fake
def _(p: Tensor, v: Tensor, root: Tensor, fused: bool) -> tuple[Tensor, Tensor]:
    return v.new_empty(v.shape), p.new_empty(p.shape)


@_newton_solve_backward.register_fake
def _(grad: Tensor, p: Tensor, complement: Tensor, root: Tensor, fused: bool) -> Tensor:
    return grad.new_empty(grad.shape)


def _setup_context(ctx, inputs, output):
    p, _, root, ctx.fused = inputs
    ctx.save_for_backward(p, root, *output)


@at_least_fp32
def _backward(ctx, grad: Tensor, _):
    p, root, out, complement = ctx.saved_tensors
    grad_v = _newton_solve_backward(grad, p, complement, root, ctx.fused)
    return -grad_v @ out.mT, grad_v, None, None


_newton_solve.register_autograd(_backward, setup_context=_setup_context)

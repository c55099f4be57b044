"""Newton's iterations as one rational function with one pole: an inverse and a few products."""

import math
from collections.abc import Iterator
from functools import cache

import torch
from numpy.polynomial import chebyshev
from torch import Tensor

from ..precision import at_least_fp32

DEGREE = 28
POLE = 2.2
# Elements of the matrices of a batch: on a CPU they stay in the cache.
BATCH = {'cpu': 2**18, 'cuda': 2**24}
# For smaller matrices the iteration is as fast.
MIN_SIZE = 160
# From this many iterations on, the exponential approximates the power to fp32 precision.
MIN_ITERATIONS = 20


def is_worthwhile(m: int, iterations: int) -> bool:
    """Whether the rational function is accurate and faster than iterating."""
    return m >= MIN_SIZE and iterations >= MIN_ITERATIONS


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


def rational_newton_solve(p: Tensor, v: Tensor, alpha: Tensor, iterations: int) -> Tensor:
    """p ``(..., m, m)``, v ``(..., m, e)``, alpha ``(..., 1, 1)`` -> ``(..., m, e)``."""
    return _newton_solve(p, v, (alpha.double() * 2.0**iterations).sqrt().to(p.dtype))[0]


@torch.library.custom_op('soft_mm::newton_solve', mutates_args=())
def _newton_solve(p: Tensor, v: Tensor, root: Tensor) -> tuple[Tensor, Tensor]:
    """The result ``(..., m, e)`` from root √s ``(..., 1, 1)``, and for the backward pass I − ρ."""
    out, complement = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (v, p))
    for batch in _batches(complement, p, root):
        _factor(*batch)
    for batch in _batches(out, complement, p, v, root):
        _apply(*batch)
    return out, complement


@torch.library.custom_op('soft_mm::newton_solve_backward', mutates_args=())
def _newton_solve_backward(grad: Tensor, p: Tensor, complement: Tensor, root: Tensor) -> Tensor:
    """Gradient of v from that of the result, both ``(..., m, e)``."""
    out = torch.empty_like(grad, memory_format=torch.contiguous_format)
    for batch in _batches(out, complement, p, grad, root):
        _apply(*batch)
    return out


def _batches(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Flatten the leading dimensions and split them into batches of at most BATCH elements."""
    flat = [x.reshape(-1, *x.shape[-2:]) for x in tensors]
    elements = BATCH.get(flat[0].device.type, BATCH['cuda'])
    size = max(1, elements // max(1, *(x[:1].numel() for x in flat)))
    return zip(*(x.split(size) for x in flat))


def _factor(out: Tensor, p: Tensor, root: Tensor) -> None:
    """Write ``I − ρ = P (P + δI)⁻¹`` of p ``(L, m, m)`` to ``out``."""
    shift = POLE / root
    shifted = p.clone()
    shifted.diagonal(dim1=-2, dim2=-1).add_(shift[..., 0])
    inverse = torch.cholesky_inverse(torch.linalg.cholesky_ex(shifted)[0])
    torch.mul(inverse, -shift, out=out)
    # Where an eigenvalue is small, 1 − δ·inverse_ii loses the digits that P·inverse keeps.
    out.diagonal(dim1=-2, dim2=-1).copy_(inverse.mul_(p).sum(-1))


def _apply(out: Tensor, complement: Tensor, p: Tensor, v: Tensor, root: Tensor) -> None:
    """Write ``√s (I − ρ) g(ρ) ρ v`` ``(L, m, e)`` to ``out``, for the complement I − ρ of ρ."""
    # z = ρ v = δ (P + δI)⁻¹ v. For large eigenvalues, where ρ is small, v − (I − ρ) v loses digits;
    # a step of iterative refinement restores them.
    shift = POLE / root
    z = torch.baddbmm(v, complement, v, alpha=-1)
    residual = torch.baddbmm(shift * (v - z), p, z, alpha=-1)
    z += torch.baddbmm(residual, complement, residual, alpha=-1) / shift
    # Clenshaw's recurrence for y = g(ρ) z. The Chebyshev argument is 2ρ − I.
    first, *others, last = coefficients()
    y, before = last * z, torch.zeros_like(z)
    for c in reversed(others):
        # 2·y − 4·complement·y − (before − c·z), in as few passes as possible.
        half = torch.add(y, torch.add(before, z, alpha=-c), alpha=-0.5)
        y, before = torch.baddbmm(half, complement, y, beta=2, alpha=-4), y
    y = torch.baddbmm(first * z + y - before, complement, y, alpha=-2)
    torch.bmm(complement, y, out=out).mul_(root)


@_newton_solve.register_fake
def _(p: Tensor, v: Tensor, root: Tensor) -> tuple[Tensor, Tensor]:
    return v.new_empty(v.shape), p.new_empty(p.shape)


@_newton_solve_backward.register_fake
def _(grad: Tensor, p: Tensor, complement: Tensor, root: Tensor) -> Tensor:
    return grad.new_empty(grad.shape)


def _setup_context(ctx, inputs, output):
    p, _, root = inputs
    ctx.save_for_backward(p, root, *output)


@at_least_fp32
def _backward(ctx, grad: Tensor, _):
    p, root, out, complement = ctx.saved_tensors
    grad_v = _newton_solve_backward(grad, p, complement, root)
    return -grad_v @ out.mT, grad_v, None


_newton_solve.register_autograd(_backward, setup_context=_setup_context)

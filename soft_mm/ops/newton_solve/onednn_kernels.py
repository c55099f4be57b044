"""Inverse and products of large matrices on a CPU, one matrix after the other, by oneDNN."""

import torch
from torch import Tensor

from ..linear import linear
from . import torch_kernels

MIN_SIZE = 384  # rows from which a single matrix is faster than its share of a batch
BLOCK = 320  # rows up to which LAPACK inverts a block


def supports(p: Tensor) -> bool:
    return p.device.type == 'cpu' and p.dtype == torch.float32 and p.shape[-1] >= MIN_SIZE


def factor(out: Tensor, p: Tensor, root: Tensor, pole: float) -> None:
    """See :func:`.torch_kernels.factor`."""
    torch_kernels.factor(out, p, root, pole, invert)


def invert(matrices: Tensor) -> Tensor:
    """Inverses of positive definite matrices ``(L, m, m)``."""
    out = torch.empty_like(matrices)
    for pair in zip(matrices, out):
        _write_inverse(*pair)
    return out


def product(
    matrix: Tensor,
    y: Tensor,
    factor: float,
    *terms: tuple[float, Tensor],
    out: Tensor | None = None,
) -> Tensor:
    """See :func:`.torch_kernels.product`."""
    out = torch.empty_like(y) if out is None else out
    for part, *one in zip(out, matrix, y):
        torch.mul(_product(*one), factor, out=part)
    for c, x in terms:
        out.add_(x, alpha=c)
    return out


def _write_inverse(a: Tensor, out: Tensor) -> None:
    """Write the inverse of a ``(m, m)``, by the Schur complement of its upper left quarter."""
    m = len(a)
    if m <= BLOCK:
        out.copy_(torch_kernels.invert(a))
        return
    upper, lower = slice(m // 2), slice(m // 2, m)
    corner = a[lower, upper]
    _write_inverse(a[upper, upper], out[upper, upper])
    solved = _product(corner, out[upper, upper])
    # If all landmarks are equal, the Schur complement cancels: refine what it is computed from.
    solved += _product(corner - _product(solved, a[upper, upper]), out[upper, upper])
    _write_inverse(a[lower, lower] - _product(solved, corner.T), out[lower, lower])
    off_diagonal = _product(out[lower, lower], solved)
    out[upper, upper] += _product(solved.T, off_diagonal)
    torch.neg(off_diagonal, out=out[lower, upper])
    out[upper, lower] = out[lower, upper].T


def _product(a: Tensor, b: Tensor) -> Tensor:
    return linear(a, b.T)

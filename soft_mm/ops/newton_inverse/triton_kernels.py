"""All iterations of a small matrix in one launch, with the matrix in registers throughout."""

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_SIZE = 64  # rows of a matrix that fits in registers


def supports(p: Tensor) -> bool:
    """Whether the kernel supports these matrices."""
    return p.dtype == torch.float32 and 0 < p.shape[-1] <= MAX_SIZE and p.numel() > 0


@triton.jit
def _iterate(p, alpha, out, m, iterations, small, BLOCK: tl.constexpr):
    matrix = tl.program_id(0).to(tl.int64)
    p, out = p + matrix * m * m, out + matrix * m * m
    row, column = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK)[None, :]
    inside = (row < m) & (column < m)
    p = tl.load(p + row * m + column, mask=inside, other=0.0)
    v = tl.load(alpha + matrix) * p
    step, error = 0, float('inf')
    while (step < iterations) & (error >= small):
        product = tl.dot(v, p, input_precision='tf32x3')
        error = tl.max(tl.abs(tl.where((row == column) & (row < m), product - 1, product)))
        v = tl.dot(-product, v, 2 * v, input_precision='tf32x3')
        step += 1
    tl.store(out + row * m + column, v, mask=inside)


def newton_inverse(p: Tensor, alpha: Tensor, iterations: int, small: float) -> Tensor:
    """p ``(..., m, m)``, alpha broadcast to ``(..., 1, 1)`` -> ``(..., m, m)``.

    Each matrix stops after the first iteration in which all entries of VP − I are below ``small``.
    """
    p, m = p.contiguous(), p.shape[-1]
    alpha, out = alpha.expand(*p.shape[:-2], 1, 1).contiguous(), torch.empty_like(p)
    with torch.cuda.device_of(p):
        _iterate[p.numel() // m**2,](
            p, alpha, out, m, iterations, small, max(16, triton.next_power_of_2(m))
        )
    return out

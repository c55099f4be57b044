"""All iterations of a small matrix in one launch, by one program, whose matrices stay in the L1 cache.

Products are of three TF32 products each, which together are as exact as one in fp32.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_SIZE = 64  # rows of a matrix whose iterates fit in registers
STEP = 16  # columns that a product takes at a time: with whole operands, registers spill


def supports(p: Tensor) -> bool:
    """Whether the kernel supports these matrices."""
    return p.dtype == torch.float32 and 0 < p.shape[-1] <= MAX_SIZE and p.numel() > 0


@triton.jit
def add_product(total, a, b, SIZE: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr):
    """``total + a·b`` of matrices in memory, ``(SIZE, SIZE)`` and ``(SIZE, COLUMNS)``."""
    index, few, column = tl.arange(0, SIZE), tl.arange(0, STEP), tl.arange(0, COLUMNS)
    for start in range(0, SIZE, STEP):
        left = tl.load(a + index[:, None] * SIZE + (start + few)[None, :])
        right = tl.load(b + (start + few)[:, None] * COLUMNS + column[None, :])
        total = tl.dot(left, right, total, input_precision='tf32x3')
    return total


@triton.jit
def iterated(v, work, m, iterations, small, SIZE: tl.constexpr, STEP: tl.constexpr):
    """The iterates from v, padded with zeros to ``(SIZE, SIZE)``, until all entries of VP − I are small.

    ``work`` holds P, V and −VP, padded too; P is there already.
    """
    row, column = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :]
    place = row * SIZE + column
    padded, iterate, product = work, work + SIZE * SIZE, work + 2 * SIZE * SIZE
    step, error = 0, float('inf')
    while (step < iterations) & (error >= small):
        # Barriers separate what threads write from what others read.
        tl.store(iterate + place, v)
        tl.debug_barrier()
        vp = add_product(tl.zeros((SIZE, SIZE), tl.float32), iterate, padded, SIZE, SIZE, STEP)
        error = tl.max(tl.abs(tl.where((row == column) & (row < m), vp - 1, vp)))
        tl.store(product + place, -vp)
        tl.debug_barrier()
        v = add_product(2 * v, product, iterate, SIZE, SIZE, STEP)
        tl.debug_barrier()
        step += 1
    return v


@triton.jit(do_not_specialize=['m', 'iterations'])
def _iterate(p, alpha, out, work, m, iterations, small, SIZE: tl.constexpr, STEP: tl.constexpr):
    """A matrix of at most SIZE rows; ``work`` has three padded ones."""
    matrix = tl.program_id(0).to(tl.int64)
    row, column = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :]
    inside = (row < m) & (column < m)
    work += matrix * 3 * SIZE * SIZE
    v = tl.load(p + matrix * m * m + row * m + column, mask=inside, other=0.0)
    tl.store(work + row * SIZE + column, v)
    v *= tl.load(alpha + matrix)
    v = iterated(v, work, m, iterations, small, SIZE, STEP)
    tl.store(out + matrix * m * m + row * m + column, v, mask=inside)


def newton_inverse(p: Tensor, alpha: Tensor, iterations: int, small: float) -> Tensor:
    """p ``(..., m, m)``, alpha broadcast to ``(..., 1, 1)`` -> ``(..., m, m)``.

    Each matrix stops after the first iteration in which all entries of VP − I are below ``small``.
    """
    p, m = p.contiguous(), p.shape[-1]
    count, size = p.numel() // m**2, max(16, triton.next_power_of_2(m))
    alpha, out = alpha.expand(*p.shape[:-2], 1, 1).contiguous(), torch.empty_like(p)
    work = p.new_empty(count, 3, size, size)
    with torch.cuda.device_of(p):
        _iterate[count,](
            p,
            alpha,
            out,
            work,
            m,
            iterations,
            small,
            size,
            STEP,
            num_warps=size // 16,
            num_stages=1,
        )
    return out

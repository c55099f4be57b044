"""The scale of the iteration's starting point in two launches."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import scale

ROWS, COLUMNS, NUMBERS = 32, 64, 1024  # tile of P; numbers that a program reduces at a time
MAX_SUM, MAX_DIAGONAL = (tl.constexpr(x) for x in (scale.MAX_SUM, scale.MAX_DIAGONAL))
MAX_HALVINGS = tl.constexpr(scale.MAX_HALVINGS)


def supports(p: Tensor) -> bool:
    """Whether the kernels support these matrices."""
    # Offsets within a matrix are 32-bit integers.
    return p.dtype == torch.float32 and p.shape[-1] < 2**15 and p.numel() > 0


@triton.jit(do_not_specialize=['m'])
def _bounds(p, row_sums, bounds, m, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The inverse of the largest scale that suits each column of P."""
    tiles = tl.cdiv(m, ROWS)
    matrix, row = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles * ROWS
    row += tl.arange(0, ROWS)
    p, row_sums = p + matrix * m * m, row_sums + matrix * m
    columns, diagonal = tl.zeros((ROWS,), tl.float32), tl.zeros((ROWS,), tl.float32)
    for start in range(0, m, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        inside = (row[:, None] < m) & (column[None, :] < m)
        a = tl.load(p + row[:, None] * m + column[None, :], mask=inside, other=0.0)
        sums = tl.load(row_sums + column, mask=column < m, other=0.0)
        columns += tl.sum(a * sums[None, :], 1)
        diagonal += tl.sum(a * a, 1)
    bound = tl.maximum(columns / (MAX_SUM + 1), diagonal / MAX_DIAGONAL)
    bound = tl.maximum((columns - 2 * diagonal) / (MAX_SUM - 1), bound)
    tl.store(bounds + matrix * m + row, bound, mask=row < m)


@triton.jit(do_not_specialize=['n'])
def _scale(row_sums, bounds, out, n, NUMBERS: tl.constexpr):
    """The scale that suits all of n columns."""
    group = tl.program_id(0).to(tl.int64)
    norm, bound = tl.zeros((NUMBERS,), tl.float32), tl.zeros((NUMBERS,), tl.float32)
    for start in range(0, n, NUMBERS):
        place = start + tl.arange(0, NUMBERS)
        norm = tl.maximum(norm, tl.load(row_sums + group * n + place, mask=place < n, other=0.0))
        bound = tl.maximum(bound, tl.load(bounds + group * n + place, mask=place < n, other=0.0))
    norm = tl.max(norm)
    alpha = 2 / (norm * norm)
    halvings = tl.ceil(tl.log2(alpha * tl.max(bound)))
    halvings = tl.minimum(tl.maximum(halvings, 0.0), MAX_HALVINGS)
    tl.store(out + group, alpha * tl.exp2(-halvings))


@torch.library.custom_op('soft_mm::newton_scale', mutates_args=())
def newton_scale(p: Tensor, row_sums: Tensor, shared: bool) -> Tensor:
    """p ``(B, h, m, m)``, row sums ``(B, h, m, 1)`` -> ``(B, h, 1, 1)`` or ``(1, 1, 1, 1)``."""
    p, row_sums, m = p.contiguous(), row_sums.contiguous(), p.shape[-1]
    bounds, out = torch.empty_like(row_sums), _empty(p, row_sums, shared)
    with torch.cuda.device_of(p):
        _bounds[p.numel() // m**2 * triton.cdiv(m, ROWS),](p, row_sums, bounds, m, ROWS, COLUMNS)
        _scale[out.numel(),](row_sums, bounds, out, bounds.numel() // out.numel(), NUMBERS)
    return out


@newton_scale.register_fake
def _empty(p: Tensor, row_sums: Tensor, shared: bool) -> Tensor:
    return p.new_empty(*((1, 1) if shared else p.shape[:2]), 1, 1)

"""The Gaussian kernel from explicit differences, in one launch.

For few tokens, such as landmarks, a launch costs more than the matrix product that it saves.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, COLUMNS = 32, 64


def supports(q: Tensor, k: Tensor) -> bool:
    """Whether the kernel supports these tokens."""
    # Offsets within a matrix are 32-bit integers.
    extent = max(q.shape[-2] * k.shape[-2], q.shape[-2] * q.shape[-1], k.shape[-2] * k.shape[-1])
    return (
        max(q.dtype.itemsize, k.dtype.itemsize) <= 4
        and extent < 2**31
        and min(q.numel(), k.numel()) > 0
    )


@triton.jit(do_not_specialize=['M', 'N'])
def _exponentiate(q, k, out, M, N, d: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """A tile of ``exp(-½‖q_i − k_j‖²)``."""
    tiles, strips = tl.cdiv(M, ROWS), tl.cdiv(N, COLUMNS)
    tile = tl.program_id(0) % tiles
    strip = tl.program_id(0) // tiles % strips
    head = (tl.program_id(0) // (tiles * strips)).to(tl.int64)
    row, column = tile * ROWS + tl.arange(0, ROWS), strip * COLUMNS + tl.arange(0, COLUMNS)
    q, k = q + head * M * d + row * d, k + head * N * d + column * d
    distance = tl.zeros((ROWS, COLUMNS), tl.float32)
    for c in range(d):
        a = tl.load(q + c, mask=row < M, other=0.0).to(tl.float32)
        b = tl.load(k + c, mask=column < N, other=0.0).to(tl.float32)
        difference = a[:, None] - b[None, :]
        distance += difference * difference
    place = head * M * N + row[:, None] * N + column[None, :]
    tl.store(out + place, tl.exp(-0.5 * distance), mask=(row[:, None] < M) & (column[None, :] < N))


def gaussian_kernel(q: Tensor, k: Tensor) -> Tensor:
    """q ``(..., M, d)``, k ``(..., N, d)`` -> ``(..., M, N)`` in fp32."""
    (m, d), n = q.shape[-2:], k.shape[-2]
    q, k = q.contiguous(), k.contiguous()
    out = q.new_empty(*q.shape[:-1], n, dtype=torch.float32)
    grid = out.numel() // (m * n) * triton.cdiv(m, ROWS) * triton.cdiv(n, COLUMNS)
    with torch.cuda.device_of(q):
        _exponentiate[grid,](q, k, out, m, n, d, ROWS, COLUMNS)
    return out

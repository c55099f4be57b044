"""The product with tiles of the kernel matrix that stay in registers.

Two kernels compute the product and all three gradients. Each of these is a sum over the tokens of
the other set, so swapping q with k, or v with the gradient, reuses the same kernel.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..gaussian_kernel.expanded import centred

ROWS, COLUMNS = 64, 32  # size of a tile
MAX_CHANNELS = 64  # wider tiles do not fit in registers
TARGET_BLOCKS = 512  # enough to occupy a GPU; with fewer row tiles, the sum over columns is split


def supports(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether the kernels support these head dimensions, dtypes and sizes."""
    # Offsets within a head are 32-bit integers.
    return max(q.shape[-1], v.shape[-1]) <= MAX_CHANNELS and all(
        x.dtype.itemsize <= 4 and 0 < x.shape[-2] < 2**31 // MAX_CHANNELS and x.numel()
        for x in (q, k, v)
    )


@triton.jit
def _load(x, rows, count, channels: tl.constexpr, BLOCK: tl.constexpr):
    """Load rows of ``(count, channels)`` in fp32; elements out of bounds are 0."""
    c = tl.arange(0, BLOCK)
    mask = (rows[:, None] < count) & (c[None, :] < channels)
    return tl.load(x + rows[:, None] * channels + c[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _kernel(q, k, EXPONENT: tl.constexpr):
    """Tile of ``exp(-½‖q_i − k_j‖²)``."""
    exponent = tl.dot(q, tl.trans(k), input_precision=EXPONENT)
    exponent -= 0.5 * tl.sum(q * q, 1)[:, None] + 0.5 * tl.sum(k * k, 1)[None, :]
    return tl.exp(tl.minimum(exponent, 0.0))


@triton.jit
def _block(M, L, N, splits, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """This program's head, rows, range of columns and index of its output matrix."""
    tiles = tl.cdiv(M, ROWS)
    tile, head = tl.program_id(0) % tiles, (tl.program_id(0) // tiles).to(tl.int64)
    rows = tile * ROWS + tl.arange(0, ROWS)
    width = tl.cdiv(tl.cdiv(N, COLUMNS), splits) * COLUMNS
    first = tl.program_id(1) * width
    return head, rows, first, tl.minimum(first + width, N), tl.program_id(1) * L + head


@triton.jit
def _sum_values(
    q,
    k,
    v,
    out,
    L,
    M,
    N,
    splits,
    d: tl.constexpr,
    e: tl.constexpr,
    D: tl.constexpr,
    E: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    EXPONENT: tl.constexpr,
):
    """``out_i = Σ_j K_ij v_j``."""
    head, rows, first, last, place = _block(M, L, N, splits, ROWS, COLUMNS)
    queries = _load(q + head * M * d, rows, M, d, D)
    total = tl.zeros((ROWS, E), tl.float32)
    for start in range(first, last, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        keys = _load(k + head * N * d, columns, N, d, D)
        values = _load(v + head * N * e, columns, N, e, E)
        total += tl.dot(_kernel(queries, keys, EXPONENT), values, input_precision='tf32x3')
    _store(out + place * M * e, total, rows, M, e, E)


@triton.jit
def _sum_differences(
    q,
    k,
    g,
    v,
    out,
    L,
    M,
    N,
    splits,
    d: tl.constexpr,
    e: tl.constexpr,
    D: tl.constexpr,
    E: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    EXPONENT: tl.constexpr,
):
    """``out_i = Σ_j K_ij (g_i · v_j) (k_j − q_i)``."""
    head, rows, first, last, place = _block(M, L, N, splits, ROWS, COLUMNS)
    queries = _load(q + head * M * d, rows, M, d, D)
    gradients = _load(g + head * M * e, rows, M, e, E)
    total, weight = tl.zeros((ROWS, D), tl.float32), tl.zeros((ROWS,), tl.float32)
    for start in range(first, last, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        keys = _load(k + head * N * d, columns, N, d, D)
        values = _load(v + head * N * e, columns, N, e, E)
        p = tl.dot(gradients, tl.trans(values), input_precision='tf32x3')
        p *= _kernel(queries, keys, EXPONENT)
        total += tl.dot(p, keys, input_precision='tf32x3')
        weight += tl.sum(p, 1)
    _store(out + place * M * d, total - weight[:, None] * queries, rows, M, d, D)


@triton.jit
def _store(out, x, rows, count, channels: tl.constexpr, BLOCK: tl.constexpr):
    c = tl.arange(0, BLOCK)
    mask = (rows[:, None] < count) & (c[None, :] < channels)
    tl.store(out + rows[:, None] * channels + c[None, :], x, mask=mask)


def _launch(kernel, channels: int, *tensors: Tensor) -> Tensor:
    """q ``(..., M, d)``, k ``(..., N, d)``, …, v ``(..., N, e)`` -> ``(..., M, channels)``."""
    q, k, *_, v = tensors
    shape = *q.shape[:-1], channels
    (count, m, d), n, e = q.reshape(-1, *q.shape[-2:]).shape, k.shape[-2], v.shape[-1]
    blocks = count * triton.cdiv(m, ROWS)
    splits = max(1, min(TARGET_BLOCKS // blocks, triton.cdiv(n, 8 * COLUMNS)))
    # The split depends only on the shapes, so results are bitwise reproducible.
    out = q.new_empty(splits, *shape, dtype=torch.float32)
    # tf32 represents half-precision inputs exactly; fp32 needs three tf32 products.
    exponent = 'tf32x3' if torch.float32 in (q.dtype, k.dtype) else 'tf32'
    with torch.cuda.device_of(q):
        kernel[blocks, splits](
            *(x.contiguous() for x in tensors),
            out,
            count,
            m,
            n,
            splits,
            d,
            e,
            *(max(16, triton.next_power_of_2(c)) for c in (d, e)),
            ROWS,
            COLUMNS,
            exponent,
            num_warps=4 if max(d, e) <= 32 else 8,
            num_stages=2,
        )
    return out[0] if splits == 1 else out.sum(0)


def _centred(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Subtract the mean of the smaller set from both; half-precision tokens stay as they are."""
    # Centring would round half-precision tokens, whose products are exact anyway.
    if torch.float32 not in (q.dtype, k.dtype):
        return q, k
    q, k = q.float(), k.float()
    return centred(q, k) if q.shape[-2] >= k.shape[-2] else centred(k, q)[::-1]


def product(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q ``(..., M, d)``, k ``(..., N, d)``, v ``(..., N, e)`` -> ``(..., M, e)`` in fp32."""
    return _launch(_sum_values, v.shape[-1], *_centred(q, k), v)


def gradients(grad: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v in fp32 from the gradient ``(..., M, e)`` of the product."""
    q, k = _centred(q, k)
    return (
        _launch(_sum_differences, q.shape[-1], q, k, grad, v),
        _launch(_sum_differences, q.shape[-1], k, q, v, grad),
        _launch(_sum_values, v.shape[-1], k, q, grad),
    )

"""The inverse by blocks, and products with a matrix that add other terms in the same pass.

Products are of three TF32 products each, as exact as fp32 whatever PyTorch's settings are.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 64  # rows of the blocks that are inverted in registers
STEP = 16  # columns of them that a product takes at a time
ROWS, COLUMNS, INNER = 32, 64, 32  # largest tile of a product with few columns
# Sizes of an image or a batch, and counters: another value must not compile another kernel.
SIZES = ['count', 'm', 'n', 'k', 'e']


def supports(p: Tensor, v: Tensor) -> bool:
    """Whether the kernels support these matrices and values."""
    # Offsets within a matrix are 32-bit integers.
    return p.dtype == torch.float32 and p.shape[-1] < 2**15 and min(p.numel(), v.numel()) > 0


@triton.jit
def _offsets(stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    return tl.arange(0, ROWS)[:, None] * stride + tl.arange(0, COLUMNS)[None, :]


@triton.jit
def _add_product(total, a, b, BLOCK: tl.constexpr, STEP: tl.constexpr):
    """``total + a·bᵀ``, a few columns at a time: more of them do not fit in registers."""
    for start in range(0, BLOCK, STEP):
        left = tl.load(a + start + _offsets(BLOCK, BLOCK, STEP))
        right = tl.load(b + start + _offsets(BLOCK, BLOCK, STEP))
        total = tl.dot(left, tl.trans(right), total, input_precision='tf32x3')
    return total


@triton.jit
def _negative_inverse(a, BLOCK: tl.constexpr):
    """Sweep every row of a symmetric positive definite tile."""
    index = tl.arange(0, BLOCK)
    for k in range(BLOCK):
        column = tl.sum(tl.where(index[None, :] == k, a, 0.0), 1)
        scale = 1 / tl.sum(tl.where(index == k, column, 0.0))
        column = tl.where(index == k, -1.0, column)
        a = tl.where((index[:, None] == k) | (index[None, :] == k), 0.0, a)
        a -= column[:, None] * column[None, :] * scale
    return a


@triton.jit
def _tile(count, n, first):
    """This program's matrix, and the row and column of its block in the lower triangle.

    The block at index ``first`` changes places with that of the first programs to start.
    """
    matrix, t = (tl.program_id(0) % count).to(tl.int64), tl.program_id(0) // count
    t = tl.where(t == 0, first, tl.where(t == first, 0, t))
    row = ((tl.sqrt_rn(8.0 * t + 1) - 1) / 2).to(tl.int32)
    return matrix, row, t - row * (row + 1) // 2


@triton.jit(do_not_specialize=SIZES)
def _shift(p, root, blocks, pivot, count, m, n, pole, BLOCK: tl.constexpr):
    """Lower blocks of P + δI, followed by the identity, and the pivot of the first step."""
    matrix, i, j = _tile(count, n, 0)
    row = i * BLOCK + tl.arange(0, BLOCK)[:, None]
    column = j * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = (row < m) & (column < m)
    a = tl.load(p + matrix * m * m + row * m + column, mask=inside, other=0.0)
    a += tl.where(row == column, tl.where(row < m, pole / tl.load(root + matrix), 1.0), 0.0)
    width = n * BLOCK
    tl.store(blocks + matrix * width * width + row * width + column, a)
    if i == 0:
        place = matrix * BLOCK * BLOCK + _offsets(BLOCK, BLOCK, BLOCK)
        tl.store(pivot + place, _negative_inverse(a, BLOCK))


@triton.jit(do_not_specialize=SIZES)
def _panel(blocks, pivot, u, w, count, n, k, BLOCK: tl.constexpr, STEP: tl.constexpr):
    """A block of ``U = A[:, k]`` with ``U_k = −I``, and of ``W = −U A_kk⁻¹``."""
    matrix, i = (tl.program_id(0) % count).to(tl.int64), tl.program_id(0) // count
    index, place, width = tl.arange(0, BLOCK), _offsets(BLOCK, BLOCK, BLOCK), n * BLOCK
    row, column = tl.maximum(i, k) * BLOCK, tl.minimum(i, k) * BLOCK
    blocks += matrix * width * width + row * width + column
    a = tl.load(blocks + _offsets(width, BLOCK, BLOCK))
    if i < k:
        a = tl.trans(a)
    if i == k:
        a = tl.where(index[:, None] == index[None, :], -1.0, 0.0)
    u, w = u + (matrix * n + i) * BLOCK * BLOCK, w + (matrix * n + i) * BLOCK * BLOCK
    tl.store(u + place, a)
    tl.debug_barrier()  # every thread reads what the others wrote
    pivot += matrix * BLOCK * BLOCK  # symmetric
    w_i = _add_product(tl.zeros((BLOCK, BLOCK), tl.float32), u, pivot, BLOCK, STEP)
    tl.store(w + place, w_i)


@triton.jit(do_not_specialize=SIZES)
def _sweep(blocks, pivot, u, w, count, n, k, BLOCK: tl.constexpr, STEP: tl.constexpr):
    """``A + W Uᵀ`` with row and column k of A set to 0, and the pivot of the next step."""
    following = (k + 1) * (k + 4) // 2  # index of block (k + 1, k + 1), which takes longest
    matrix, i, j = _tile(count, n, tl.where(k + 1 < n, following, 0))
    width = n * BLOCK
    blocks += matrix * width * width + i * BLOCK * width + j * BLOCK
    blocks += _offsets(width, BLOCK, BLOCK)
    a = tl.zeros((BLOCK, BLOCK), tl.float32)
    if (i != k) & (j != k):
        a = tl.load(blocks)
    w += (matrix * n + i) * BLOCK * BLOCK
    u += (matrix * n + j) * BLOCK * BLOCK
    a = _add_product(a, w, u, BLOCK, STEP)
    tl.store(blocks, a)
    if (i == j) & (i == k + 1):
        place = matrix * BLOCK * BLOCK + _offsets(BLOCK, BLOCK, BLOCK)
        tl.store(pivot + place, _negative_inverse(a, BLOCK))


@triton.jit(do_not_specialize=SIZES)
def _complement(blocks, p, root, out, count, m, n, pole, BLOCK: tl.constexpr):
    """Rows of ``I − δ·inverse``, their diagonal from ``P·inverse``, from −inverse in the blocks."""
    matrix, i = (tl.program_id(0) % count).to(tl.int64), tl.program_id(0) // count
    index, width = tl.arange(0, BLOCK), n * BLOCK
    blocks, p, out = blocks + matrix * width * width, p + matrix * m * m, out + matrix * m * m
    delta = pole / tl.load(root + matrix)
    row, diagonal = i * BLOCK + index, tl.zeros((BLOCK,), tl.float32)
    for j in range(n):
        column = j * BLOCK + index
        corner = tl.maximum(i, j) * BLOCK * width + tl.minimum(i, j) * BLOCK
        a = tl.load(blocks + corner + _offsets(width, BLOCK, BLOCK))
        if i < j:
            a = tl.trans(a)
        place = row[:, None] * m + column[None, :]
        inside = (row[:, None] < m) & (column[None, :] < m)
        diagonal -= tl.sum(tl.load(p + place, mask=inside, other=0.0) * a, 1)
        tl.store(out + place, delta * a, mask=inside & (row[:, None] != column[None, :]))
    tl.store(out + row * m + row, diagonal, mask=row < m)


@triton.jit(do_not_specialize=SIZES)
def _product(
    matrix,
    y,
    x0,
    x1,
    x2,
    out,
    factor,
    c0,
    c1,
    c2,
    m,
    e,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
):
    """``factor·matrix·y + c0·x0 + c1·x1 + c2·x2``, each ``(m, e)``."""
    tiles, strips = tl.cdiv(m, ROWS), tl.cdiv(e, COLUMNS)
    tile = tl.program_id(0) % tiles
    strip = tl.program_id(0) // tiles % strips
    batch = (tl.program_id(0) // (tiles * strips)).to(tl.int64)
    row = tile * ROWS + tl.arange(0, ROWS)[:, None]
    column = strip * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    matrix, y = matrix + batch * m * m, y + batch * m * e
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, m, INNER):
        inner = start + tl.arange(0, INNER)
        left = matrix + row * m + inner[None, :]
        left = tl.load(left, mask=(row < m) & (inner[None, :] < m), other=0.0)
        right = y + inner[:, None] * e + column
        right = tl.load(right, mask=(inner[:, None] < m) & (column < e), other=0.0)
        total = tl.dot(left, right, total, input_precision='tf32x3')
    place, inside = batch * m * e + row * e + column, (row < m) & (column < e)
    total *= factor
    total += c0 * tl.load(x0 + place, mask=inside, other=0.0)
    total += c1 * tl.load(x1 + place, mask=inside, other=0.0)
    total += c2 * tl.load(x2 + place, mask=inside, other=0.0)
    tl.store(out + place, total, mask=inside)


def factor(out: Tensor, p: Tensor, root: Tensor, pole: float) -> None:
    """Write ``P (P + δI)⁻¹`` of p ``(L, m, m)`` to ``out`` for ``δ = pole/root``, root ``(L, 1, 1)``."""
    count, m, _ = p.shape
    n = triton.cdiv(m, BLOCK)
    triangle, tile = n * (n + 1) // 2, dict(BLOCK=BLOCK, num_warps=8, num_stages=1)
    blocks = p.new_empty(count, n * BLOCK, n * BLOCK)
    pivot = p.new_empty(count, BLOCK, BLOCK)
    u, w = (p.new_empty(count, n * BLOCK, BLOCK) for _ in range(2))
    with torch.cuda.device_of(p):
        _shift[count * triangle,](p, root, blocks, pivot, count, m, n, pole, **tile)
        for k in range(n):
            _panel[count * n,](blocks, pivot, u, w, count, n, k, STEP=STEP, **tile)
            _sweep[count * triangle,](blocks, pivot, u, w, count, n, k, STEP=STEP, **tile)
        _complement[count * n,](blocks, p, root, out, count, m, n, pole, **tile)


def product(
    matrix: Tensor,
    y: Tensor,
    factor: float,
    *terms: tuple[float, Tensor],
    out: Tensor | None = None,
) -> Tensor:
    """``factor·matrix·y + Σ c·x`` of at most three terms, matrix ``(L, m, m)``, y and x ``(L, m, e)``."""
    count, m, e = y.shape
    coefficients, tensors = zip(*terms, *[(0, y)] * (3 - len(terms)))
    # Triton would compile a kernel for each integer among the coefficients' types and values.
    factor, *coefficients = map(float, (factor, *coefficients))
    columns = min(COLUMNS, max(16, triton.next_power_of_2(e)))
    out = torch.empty_like(y) if out is None else out
    grid = count * triton.cdiv(m, ROWS) * triton.cdiv(e, columns)
    with torch.cuda.device_of(y):
        _product[grid,](matrix, y, *tensors, out, factor, *coefficients, m, e, ROWS, columns, INNER)
    return out

"""SOFT's inverse of the landmarks' kernel matrix, and the scale of its starting point."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..gaussian_kernel import triton_kernels as gaussian
from ..newton_inverse.implicit import threshold
from ..newton_inverse.triton_kernels import MAX_SIZE, STEP, add_product, iterated
from ..newton_solve import rational
from . import scale
from .landmark_solve import ITERATIONS, empty_results

ROWS, COLUMNS, NUMBERS = 32, 64, 1024  # tile of P; numbers that a program reduces at a time
MAX_CHANNELS = 32  # of the values that are multiplied by the inverse in registers
RIDGE, MARGIN = tl.constexpr(scale.RIDGE), tl.constexpr(scale.MARGIN)
MAX_SUM, MAX_DIAGONAL = (tl.constexpr(x) for x in (scale.MAX_SUM, scale.MAX_DIAGONAL))
MAX_HALVINGS = tl.constexpr(scale.MAX_HALVINGS)
ROOT = tl.constexpr(2.0 ** (ITERATIONS / 2))


def supports(p: Tensor) -> bool:
    """Whether the kernels of the scale support these matrices."""
    # Offsets within a matrix are 32-bit integers.
    return p.dtype == torch.float32 and p.shape[-1] < 2**15 and p.numel() > 0


def supports_landmarks(landmarks: Tensor, v: Tensor) -> bool:
    """Whether the kernels support these landmarks ``(..., m, d)`` and values ``(..., m, e)``."""
    return (
        gaussian.supports(landmarks, landmarks)
        and landmarks.shape[-2] < 2**15
        and v.dtype == torch.float32
        and 0 < v.shape[-1] <= MAX_CHANNELS
    )


@triton.jit
def _bound(columns, diagonal):
    """The inverse of the largest scale that suits a column of P, from those of P² and its diagonal."""
    bound = tl.maximum(columns / (MAX_SUM + 1), diagonal / MAX_DIAGONAL)
    return tl.maximum((columns - 2 * diagonal) / (MAX_SUM - 1), bound)


@triton.jit
def _alpha(norm, bound):
    """The scale for the largest row sum and the largest bound."""
    alpha = 2 / (norm * norm)
    halvings = tl.ceil(tl.log2(alpha * bound))
    return alpha * tl.exp2(-tl.minimum(tl.maximum(halvings, 0.0), MAX_HALVINGS))


@triton.jit(do_not_specialize=['m', 'e', 'iterations'])
def _solve(
    landmarks,
    v,
    out,
    p,
    row_sums,
    inverse,
    root,
    work,
    m,
    e,
    iterations,
    small,
    d: tl.constexpr,
    NORMALIZED: tl.constexpr,
    SIZE: tl.constexpr,
    STEP: tl.constexpr,
    E: tl.constexpr,
):
    """The inverse of the kernel matrix of at most SIZE landmarks, applied to v ``(m, e)``."""
    matrix, index, c = tl.program_id(0).to(tl.int64), tl.arange(0, SIZE), tl.arange(0, E)
    row, column = index[:, None], index[None, :]
    inside, place = (row < m) & (column < m), row * m + column
    landmarks += matrix * m * d
    distance = tl.zeros((SIZE, SIZE), tl.float32)
    for channel in range(d):
        a = tl.load(landmarks + row * d + channel, mask=row < m, other=0.0).to(tl.float32)
        b = tl.load(landmarks + column * d + channel, mask=column < m, other=0.0).to(tl.float32)
        distance += (a - b) * (a - b)
    kernel = tl.where(inside, tl.exp(-0.5 * distance), 0.0)

    sums = tl.sum(kernel, 1)
    norm = tl.max(sums)
    if NORMALIZED:
        columns = tl.sum(kernel * tl.sum(kernel, 0)[None, :], 1)
        alpha = _alpha(norm, tl.max(_bound(columns, tl.sum(kernel * kernel, 1))))
    else:
        kernel += tl.where(inside & (row == column), RIDGE, 0.0)
        alpha = MARGIN * 2 / (norm * norm)
    tl.store(root + matrix, tl.sqrt_rn(alpha) * ROOT)
    tl.store(p + matrix * m * m + place, kernel, mask=inside)
    row_sums += matrix * m
    tl.store(row_sums + index, sums, mask=index < m)
    WIDTH: tl.constexpr = SIZE if SIZE > E else E
    work += matrix * 3 * SIZE * WIDTH
    tl.store(work + row * SIZE + column, kernel)
    iterate = iterated(alpha * kernel, work, m, iterations, small, SIZE, STEP)

    tl.store(inverse + matrix * m * m + place, iterate, mask=inside)
    left, right = work, work + SIZE * SIZE
    values = (index[:, None] < m) & (c[None, :] < e)
    y = tl.load(v + matrix * m * e + index[:, None] * e + c[None, :], mask=values, other=0.0)
    if NORMALIZED:
        factor = tl.rsqrt(tl.where(index < m, sums, 1.0))[:, None]
        y *= factor
    tl.store(left + row * SIZE + column, iterate)
    tl.store(right + index[:, None] * E + c[None, :], y)
    tl.debug_barrier()
    y = add_product(tl.zeros((SIZE, E), tl.float32), left, right, SIZE, E, STEP)
    if NORMALIZED:
        y *= factor
    tl.store(out + matrix * m * e + index[:, None] * e + c[None, :], y, mask=values)


@triton.jit(do_not_specialize=['m', 'e'])
def _start(
    p,
    v,
    row_sums,
    out,
    m,
    e,
    NORMALIZED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    E: tl.constexpr,
):
    """Row sums of K2, and the values divided by their roots or, for SOFT, K2 + 0.01·I in its place."""
    tiles = tl.cdiv(m, ROWS)
    matrix, row = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles * ROWS
    row += tl.arange(0, ROWS)
    p += matrix * m * m + row * m
    sums = tl.zeros((ROWS,), tl.float32)
    for start in range(0, m, COLUMNS):
        column = (start + tl.arange(0, COLUMNS))[None, :]
        inside = (row[:, None] < m) & (column < m)
        sums += tl.sum(tl.load(p[:, None] + column, mask=inside, other=0.0), 1)
    tl.store(row_sums + matrix * m + row, sums, mask=row < m)
    if NORMALIZED:
        c = tl.arange(0, E)
        inside, place = (row[:, None] < m) & (c[None, :] < e), row[:, None] * e + c[None, :]
        y = tl.load(v + matrix * m * e + place, mask=inside, other=0.0)
        y *= tl.rsqrt(tl.where(row < m, sums, 1.0))[:, None]
        tl.store(out + matrix * m * e + place, y, mask=inside)
    else:
        tl.debug_barrier()  # other threads have read the diagonal
        diagonal = tl.load(p + row, mask=row < m, other=0.0)
        tl.store(p + row, diagonal + RIDGE, mask=row < m)


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
    tl.store(bounds + matrix * m + row, _bound(columns, diagonal), mask=row < m)


@triton.jit(do_not_specialize=['n'])
def _scale(row_sums, bounds, out, n, AS_ROOT: tl.constexpr, NUMBERS: tl.constexpr):
    """The scale α that suits all of n columns, or √α·2^(T/2) after T iterations; SOFT's without bounds."""
    group = tl.program_id(0).to(tl.int64)
    norm, bound = tl.zeros((NUMBERS,), tl.float32), tl.zeros((NUMBERS,), tl.float32)
    for start in range(0, n, NUMBERS):
        place = start + tl.arange(0, NUMBERS)
        norm = tl.maximum(norm, tl.load(row_sums + group * n + place, mask=place < n, other=0.0))
        if bounds is not None:
            new = tl.load(bounds + group * n + place, mask=place < n, other=0.0)
            bound = tl.maximum(bound, new)
    norm = tl.max(norm)
    alpha = MARGIN * 2 / (norm * norm) if bounds is None else _alpha(norm, tl.max(bound))
    tl.store(out + group, tl.sqrt_rn(alpha) * ROOT if AS_ROOT else alpha)


@torch.library.custom_op('soft_mm::newton_scale', mutates_args=())
def newton_scale(p: Tensor, row_sums: Tensor, shared: bool) -> Tensor:
    """p ``(B, h, m, m)``, row sums ``(B, h, m, 1)`` -> ``(B, h, 1, 1)`` or ``(1, 1, 1, 1)``."""
    p, row_sums, m = p.contiguous(), row_sums.contiguous(), p.shape[-1]
    bounds, out = torch.empty_like(row_sums), _empty(p, row_sums, shared)
    with torch.cuda.device_of(p):
        _bounds[p.numel() // m**2 * triton.cdiv(m, ROWS),](p, row_sums, bounds, m, ROWS, COLUMNS)
        n = bounds.numel() // out.numel()
        _scale[out.numel(),](row_sums, bounds, out, n, False, NUMBERS)
    return out


@newton_scale.register_fake
def _empty(p: Tensor, row_sums: Tensor, shared: bool) -> Tensor:
    return p.new_empty(*((1, 1) if shared else p.shape[:2]), 1, 1)


def landmark_solve(
    landmarks: Tensor, v: Tensor, normalized: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Apply the inverse of the kernel matrix of landmarks ``(..., m, d)`` to v ``(..., m, e)``.

    Returns:
        The result ``(..., m, e)`` and, for the backward pass, P ``(..., m, m)``, the row sums of K2
        ``(..., m, 1)``, the inverse of P or, for large m, I − ρ ``(..., m, m)``, and √s ``(..., 1, 1)``.
    """
    (m, d), e = landmarks.shape[-2:], v.shape[-1]
    landmarks, v = landmarks.contiguous(), v.contiguous()
    out, p, sums, matrix, root = empty_results(landmarks, v)
    count, channels = sums.numel() // m, max(16, triton.next_power_of_2(e))
    with torch.cuda.device_of(v):
        if m <= MAX_SIZE:
            size = max(16, triton.next_power_of_2(m))
            work = v.new_empty(count, 3, size, max(size, channels))
            _solve[count,](
                landmarks,
                v,
                out,
                p,
                sums,
                matrix,
                root,
                work,
                m,
                e,
                ITERATIONS,
                threshold(p),
                d,
                normalized,
                size,
                STEP,
                channels,
                num_warps=size // 16,
                num_stages=1,
            )
            return out, p, sums, matrix, root
        p, blocks = gaussian.gaussian_kernel(landmarks, landmarks), count * triton.cdiv(m, ROWS)
        _start[blocks,](p, v, sums, out, m, e, normalized, ROWS, COLUMNS, channels)
        bounds = None
        if normalized:
            v, bounds = out, torch.empty_like(sums)
            _bounds[blocks,](p, sums, bounds, m, ROWS, COLUMNS)
        _scale[count,](sums, bounds, root, m, True, NUMBERS)
    out, matrix = rational.forward(p, v, root, True)
    return out * sums.rsqrt() if normalized else out, p, sums, matrix, root

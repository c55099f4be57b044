"""The product and its gradients with tiles of the kernel matrix that stay in registers.

Every output is a sum over the tokens of one set for each token of the other, so the same kernels,
called with the sets exchanged, compute all of them. README.md explains the precision.
"""

import inspect
from math import log, sqrt
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..backend import INTERPRETED

MAX_CHANNELS = 64  # wider tiles do not fit in registers
MAX_EXTENT = 2**31  # elements of memory that a head spans: offsets within it are 32-bit
TARGET_BLOCKS = 512  # enough to occupy a GPU; with fewer row tiles, the sum over columns is split
LOG2E = tl.constexpr(1 / log(2))
SCALE = tl.constexpr(sqrt(LOG2E.value))  # of fp32 tokens, so that exp becomes 2 to the power of
# Tensor cores cut the last 13 bits off an fp32 factor. On average, over mantissas that are distributed
# as in logarithms, that is this part of it, by which the exponents make K larger.
BIAS = tl.constexpr(2**-11 / (2 * log(2)) * LOG2E.value)
ON_CPU = tl.constexpr(INTERPRETED)
PADDED = tl.constexpr(128)  # the number of prepared tokens is a multiple of this


class Tile(NamedTuple):
    """Size of a tile, and the numbers of warps that hold it and its sums without spilling."""

    rows: int
    columns: int
    warps: tuple[int, ...]

    @classmethod
    def of(cls, rows: int, channels: int, dtype: torch.dtype, sums: str) -> 'Tile':
        """Choose for ``rows`` tokens in all; ``sums`` is 'values', 'gradients' or 'both'."""
        columns = 64 if sums == 'values' else 32
        exact = dtype == torch.float32
        if rows <= 64:
            # With two warps, each row of the other factor that a warp loads is multiplied twice.
            return cls(64, columns, (2, 4) if exact and columns == 32 >= channels else (4,))
        if channels > 32:
            return cls(128, columns, (8,))
        return cls(128, columns, (4, 8) if exact or sums == 'values' else (4,))


# The tile is not tuned: the order of the sums, and so the bits of the result, follow from it.
CONFIGS = [triton.Config({}, num_warps=w, num_stages=s) for w in (2, 4, 8) for s in (2, 3)]


def fitting(configs: list[triton.Config], tile: Tile) -> list[triton.Config]:
    """Select the configs of a tile."""
    return [config for config in configs if config.num_warps in tile.warps]


def _prune(configs: list[triton.Config], arguments: dict, **constants) -> list[triton.Config]:
    channels, sums = max(constants['D'], constants['E']), arguments.get('sums')
    kind = 'values' if 'x' not in arguments else 'gradients' if sums is None else 'both'
    return fitting(configs, Tile.of(constants['ROWS'], channels, arguments['b'].dtype, kind))


# Newer versions of Triton also keep what they chose on the disk.
_can_cache = 'cache_results' in inspect.signature(triton.autotune).parameters
_autotune = triton.autotune(
    CONFIGS[:1] if INTERPRETED else CONFIGS,
    key=['d', 'e', 'ROWS'],
    prune_configs_by={'early_config_prune': _prune},
    **({'cache_results': True} if _can_cache else {}),
)
# Other sizes of the image compile nothing new.
_jit = triton.jit(do_not_specialize=['heads', 'M', 'N', 'splits'])


def supports(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether the kernels support these head dimensions, dtypes and sizes."""
    return max(q.shape[-1], v.shape[-1]) <= MAX_CHANNELS and all(
        x.dtype.itemsize <= 4
        and x.numel() > 0
        and x.shape[-2] * max(MAX_CHANNELS, x.stride(-2)) < MAX_EXTENT
        for x in (q, k, v)
    )


@triton.jit
def _round(x, BITS: tl.constexpr = 13):
    """Round the last bits of fp32, by default to TF32: tensor cores would cut them off."""
    big = float(2**BITS) * x
    return (x + big) - big


@triton.jit
def _cast(x, dtype: tl.constexpr):
    if ON_CPU and dtype == tl.bfloat16 and x.dtype == tl.float32:  # it cuts off the last bits
        x = _round(x, 16)
    return x.to(dtype)


@triton.jit
def _load(x, rows, count, stride, channels: tl.constexpr, BLOCK: tl.constexpr):
    """Load rows of a matrix; elements out of bounds are 0."""
    c = tl.arange(0, BLOCK)
    mask = (rows[:, None] < count) & (c[None, :] < channels)
    return tl.load(x + rows[:, None] * stride + c[None, :], mask=mask, other=0.0)


@triton.jit
def _store(out, x, rows, count, stride, channels: tl.constexpr, BLOCK: tl.constexpr):
    c = tl.arange(0, BLOCK)
    mask = (rows[:, None] < count) & (c[None, :] < channels)
    x = _cast(x, out.dtype.element_ty)
    tl.store(out + rows[:, None] * stride + c[None, :], x, mask=mask)


@triton.jit
def _load_columns(x, start, j, count, stride, channels: tl.constexpr, BLOCK: tl.constexpr):
    """Load rows ``start + j``.

    A start in the address takes fewer instructions, one in j fewer registers.
    """
    if x.dtype.element_ty == tl.float32:  # prepared, with enough rows for every tile
        c = tl.arange(0, BLOCK)[None, :]
        places = (x + start * channels) + j[:, None] * channels + c
        if channels == BLOCK:
            return tl.load(places)
        else:
            return tl.load(places, mask=c < channels, other=0.0)
    else:
        return _load(x, start + j, count, stride, channels, BLOCK)


@triton.jit
def _head(x, head, heads, batch_stride, head_stride):
    return x + (head // heads) * batch_stride + (head % heads) * head_stride


@triton.jit
def _tokens(
    x,
    centre,
    head,
    heads,
    rows,
    count,
    batch_stride,
    head_stride,
    stride,
    d: tl.constexpr,
    D: tl.constexpr,
):
    """Tokens as they are multiplied, and minus half their squared norms."""
    x = _load(_head(x, head, heads, batch_stride, head_stride), rows, count, stride, d, D)
    if centre is not None:
        c = tl.arange(0, D)
        x = x.to(tl.float32) - tl.load(centre + head * d + c, mask=c < d, other=0.0)[None, :]
        x = _round(SCALE * x)
    exact = x.to(tl.float32)
    return x, -0.5 * tl.sum(exact * exact, 1)


@triton.jit
def _values(x, dtype: tl.constexpr):
    """Values as they are multiplied if the tokens are of this dtype."""
    if dtype == tl.bfloat16 or x.dtype == dtype and dtype == tl.float16:
        return _cast(x, dtype)
    else:  # sums over tokens, which are fp32, may overflow fp16
        return _round(x.to(tl.float32))


@_jit
def _prepare(
    x,
    centre,
    y,
    rounded,
    values,
    norms,
    heads,
    N,
    x_batch,
    x_head,
    x_token,
    y_batch,
    y_head,
    y_token,
    d: tl.constexpr,
    e: tl.constexpr,
    D: tl.constexpr,
    E: tl.constexpr,
):
    """Write the norms of tokens and, unless the result is None, tokens and values as the other
    kernels multiply them, with rows for a whole number of tiles."""
    tiles = tl.cdiv(N, PADDED)
    tile, head = tl.program_id(0) % tiles, (tl.program_id(0) // tiles).to(tl.int64)
    rows, size = tile * PADDED + tl.arange(0, PADDED), tiles * PADDED
    tokens, squares = _tokens(x, centre, head, heads, rows, N, x_batch, x_head, x_token, d, D)
    tl.store(norms + head * size + rows, squares)
    if rounded is not None:
        _store(rounded + head * size * d, tokens, rows, size, d, d, D)
    if values is not None:
        y = _load(_head(y, head, heads, y_batch, y_head), rows, N, y_token, e, E)
        _store(values + head * size * e, _values(y, tokens.dtype), rows, size, e, e, E)


@triton.jit
def _dot(a, b, total=None):
    if ON_CPU and a.dtype == tl.bfloat16:  # the interpreter would multiply the bits as integers
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision='tf32')


@triton.jit
def _kernel(a, b, a_norms, b_norms):
    """Tile of ``exp(-½‖a_i − b_j‖²)``, in fp32 increased by what :func:`_factor` cuts off."""
    largest: tl.constexpr = BIAS if a.dtype == tl.float32 else 0.0
    exponent = _dot(a, tl.trans(b), (a_norms + largest)[:, None] + b_norms[None, :])
    if a.dtype != tl.float32:
        exponent *= LOG2E
    return tl.exp2(tl.minimum(exponent, largest, propagate_nan=tl.PropagateNan.ALL))


@triton.jit
def _columns(COLUMNS: tl.constexpr, dtype: tl.constexpr):
    """Order in which :func:`_factor` multiplies the columns of a tile."""
    j = tl.arange(0, COLUMNS)
    if dtype == tl.float32:
        j = j // 8 * 8 + j % 4 * 2 + j // 4 % 2
    return j


@triton.jit
def _factor(x, dtype: tl.constexpr, token_dtype: tl.constexpr):
    """Make a tile the first factor of a product with an operand of this dtype."""
    if dtype == tl.float32:
        if token_dtype != tl.float32:  # K is not increased
            x = _round(x)
        elif ON_CPU:  # as tensor cores do
            x = (x.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
        # A thread holds columns 2t and 2t + 1 of each eight, but multiplies columns t and t + 4 of
        # TF32. Renaming the columns so saves the exchange between threads.
        ROWS: tl.constexpr = x.shape[0]
        COLUMNS: tl.constexpr = x.shape[1]
        x = tl.reshape(x, (ROWS, COLUMNS // 8, 4, 2))
        return tl.reshape(tl.permute(x, (0, 1, 3, 2)), (ROWS, COLUMNS))
    else:
        return _cast(x, dtype)


@triton.jit
def _block(M, N, splits, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """This program's head, rows and range of columns."""
    tiles = tl.cdiv(M, ROWS)
    tile, head = tl.program_id(0) % tiles, (tl.program_id(0) // tiles).to(tl.int64)
    width = tl.cdiv(tl.cdiv(N, COLUMNS), splits) * COLUMNS
    first = tl.program_id(1) * width
    return head, tile * ROWS + tl.arange(0, ROWS), first, tl.minimum(first + width, N)


@_autotune
@_jit
def _sum_values(
    a,
    centre,
    b,
    y,
    norms,
    out,
    heads,
    M,
    N,
    splits,
    a_batch,
    a_head,
    a_token,
    b_batch,
    b_head,
    b_token,
    y_batch,
    y_head,
    y_token,
    out_split,
    out_batch,
    out_head,
    out_token,
    d: tl.constexpr,
    e: tl.constexpr,
    D: tl.constexpr,
    E: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """``out_i = Σ_j K_ij y_j``."""
    head, rows, first, last = _block(M, N, splits, ROWS, COLUMNS)
    tokens, squares = _tokens(a, centre, head, heads, rows, M, a_batch, a_head, a_token, d, D)
    norms += head * (tl.cdiv(N, PADDED) * PADDED)
    b = _head(b, head, heads, b_batch, b_head)
    y = _head(y, head, heads, y_batch, y_head)
    dtype: tl.constexpr = y.dtype.element_ty
    j, total = tl.arange(0, COLUMNS), tl.zeros((ROWS, E), tl.float32)
    for start in range(first, last, COLUMNS):
        others = _load_columns(b, start, j, N, b_token, d, D)
        values = _load_columns(y, start, _columns(COLUMNS, dtype), N, y_token, e, E)
        kernel = _kernel(tokens, others, squares, tl.load(norms + start + j))
        total = _dot(_factor(kernel, dtype, tokens.dtype), values, total)
    out = _head(out + tl.program_id(1) * out_split, head, heads, out_batch, out_head)
    _store(out, total, rows, M, out_token, e, E)


@_autotune
@_jit
def _sum_gradients(
    a,
    centre,
    b,
    x,
    y,
    norms,
    out,
    sums,
    heads,
    M,
    N,
    splits,
    a_batch,
    a_head,
    a_token,
    b_batch,
    b_head,
    b_token,
    x_batch,
    x_head,
    x_token,
    y_batch,
    y_head,
    y_token,
    out_split,
    out_batch,
    out_head,
    out_token,
    sums_split,
    sums_batch,
    sums_head,
    sums_token,
    d: tl.constexpr,
    e: tl.constexpr,
    D: tl.constexpr,
    E: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """``out_i = Σ_j K_ij (x_i · y_j) (b_j − a_i)`` and, unless sums is None, ``Σ_j K_ij y_j``."""
    head, rows, first, last = _block(M, N, splits, ROWS, COLUMNS)
    tokens, squares = _tokens(a, centre, head, heads, rows, M, a_batch, a_head, a_token, d, D)
    norms += head * (tl.cdiv(N, PADDED) * PADDED)
    dtype: tl.constexpr = b.dtype.element_ty
    value_dtype: tl.constexpr = y.dtype.element_ty
    own = _load(_head(x, head, heads, x_batch, x_head), rows, M, x_token, e, E)
    own = _values(own, dtype)
    b = _head(b, head, heads, b_batch, b_head)
    y = _head(y, head, heads, y_batch, y_head)
    # Of fp16 and fp32, which differ in range, the wider; see _values.
    common: tl.constexpr = value_dtype if own.dtype == value_dtype else tl.float32
    total, weight = tl.zeros((ROWS, D), tl.float32), tl.zeros((ROWS, 8), tl.float32)
    j, value_total = tl.arange(0, COLUMNS), tl.zeros((ROWS, E), tl.float32)
    for start in range(first, last, COLUMNS):
        others = _load_columns(b, start, j, N, b_token, d, D)
        values = _load_columns(y, start, j, N, y_token, e, E)
        kernel = _kernel(tokens, others, squares, tl.load(norms + start + j))
        if sums is not None:
            ordered = values
            if value_dtype == tl.float32:
                ordered = _load_columns(
                    y, 0, start + _columns(COLUMNS, value_dtype), N, y_token, e, E
                )
            value_total = _dot(_factor(kernel, value_dtype, dtype), ordered, value_total)
        p = kernel * _dot(own.to(common), tl.trans(values.to(common)))
        if dtype == tl.float32:
            others = _load_columns(b, 0, start + _columns(COLUMNS, dtype), N, b_token, d, D)
        p = _factor(p, dtype, dtype)
        total = _dot(p, others, total)
        # The weights are sums of what is multiplied, after rounding, so that errors of p are
        # multiplied by b_j − a_i and not by b_j. A product with ones takes fewer instructions.
        weight = _dot(p, tl.full((COLUMNS, 8), 1.0, tl.float32).to(dtype), weight)
    total -= tl.max(weight, 1)[:, None] * tokens
    if dtype == tl.float32:
        total /= SCALE
    out = _head(out + tl.program_id(1) * out_split, head, heads, out_batch, out_head)
    _store(out, total, rows, M, out_token, d, D)
    if sums is not None:
        sums = _head(sums + tl.program_id(1) * sums_split, head, heads, sums_batch, sums_head)
        _store(sums, value_total, rows, M, sums_token, e, E)


class _Others(NamedTuple):
    """Tokens ``(B, h, n, d)`` that are summed over, how many rows are some, minus half their squared
    norms, and their values ``(B, h, n, e)``."""

    tokens: Tensor
    count: int
    norms: Tensor
    values: Tensor


def _four_dimensional(x: Tensor) -> Tensor:
    """View ``(..., n, c)`` as ``(B, h, n, c)``, with the channels next to each other."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    return x[(None,) * (4 - x.ndim)] if x.ndim < 4 else x.flatten(0, x.ndim - 4)


def _width(channels: int) -> int:
    return max(16, triton.next_power_of_2(channels))


def _centre(q: Tensor, k: Tensor) -> Tensor | None:
    """What to subtract from tokens before they are rounded; None if they stay in half precision."""
    if q.dtype == k.dtype != torch.float32:
        return None
    smaller = k if q.shape[2] >= k.shape[2] else q
    return smaller.mean(2, dtype=torch.float32).contiguous()


def _prepared(x: Tensor, y: Tensor, centre: Tensor | None) -> _Others:
    (batch, heads, n, d), e = x.shape, y.shape[-1]
    rows = triton.cdiv(n, PADDED.value) * PADDED.value
    norms = x.new_empty(batch * heads, rows, dtype=torch.float32)
    tokens, values = x, y
    if centre is not None:
        tokens = x.new_empty(batch, heads, rows, d, dtype=torch.float32)
    dtype = torch.bfloat16
    if tokens.dtype != dtype:  # see _values
        dtype = torch.promote_types(tokens.dtype, y.dtype)
    if y.dtype != dtype or dtype == torch.float32:
        values = x.new_empty(batch, heads, rows, e, dtype=dtype)
    with torch.cuda.device_of(x):
        _prepare[batch * heads * rows // PADDED.value,](
            x,
            centre,
            y,
            None if tokens is x else tokens,
            None if values is y else values,
            norms,
            heads,
            n,
            *x.stride()[:3],
            *y.stride()[:3],
            d,
            e,
            _width(d),
            _width(e),
        )
    return _Others(tokens, n, norms, values)


class _Sums:
    """Where a kernel writes the sums for each row: the result, or the parts that it is a sum of."""

    def __init__(self, result: Tensor, splits: int) -> None:
        self.result = _four_dimensional(result)
        self.parts = self.result[None]
        if splits > 1:
            self.parts = result.new_empty(splits, *self.result.shape, dtype=torch.float32)

    def finish(self) -> None:
        if len(self.parts) > 1 and self.result.dtype == torch.float32:
            torch.sum(self.parts, 0, out=self.result)
        elif len(self.parts) > 1:
            self.result.copy_(self.parts.sum(0))


def _launch(
    a: Tensor,
    centre: Tensor | None,
    b: _Others,
    x: Tensor | None,
    out: Tensor,
    sums: Tensor | None = None,
) -> None:
    """Write the sums over the tokens of b for tokens a ``(B, h, m, d)`` with values x."""
    (batch, heads, m, d), n, e = a.shape, b.count, b.values.shape[-1]
    kind = 'values' if x is None else 'gradients' if sums is None else 'both'
    rows, columns, _ = Tile.of(m, max(_width(d), _width(e)), b.tokens.dtype, kind)
    blocks = batch * heads * triton.cdiv(m, rows)
    # The split depends only on the shapes, so results are bitwise reproducible.
    splits = max(1, min(TARGET_BLOCKS // blocks, triton.cdiv(n, 8 * columns)))
    results = [None if o is None else _Sums(o, splits) for o in (out, sums)]
    outputs = [None if o is None else o.parts for o in results]
    if x is None:
        kernel, inputs, outputs = _sum_values, (b.tokens, b.values), outputs[:1]
    else:
        kernel, inputs = _sum_gradients, (b.tokens, x, b.values)
    strides = [s for t in (a, *inputs) for s in t.stride()[:3]]
    for o in outputs:
        strides += (0,) * 4 if o is None else o.stride()[:4]
    with torch.cuda.device_of(a):
        kernel[blocks, splits](
            a,
            centre,
            *inputs,
            b.norms,
            *outputs,
            heads,
            m,
            n,
            splits,
            *strides,
            d=d,
            e=e,
            D=_width(d),
            E=_width(e),
            ROWS=rows,
            COLUMNS=columns,
        )
    for result in results:
        if result is not None:
            result.finish()


def empty(like: Tensor, channels: int, dtype: torch.dtype) -> Tensor:
    """``(..., n, channels)``, in memory token by token or head by head as ``like`` is."""
    if like.ndim > 2 and like.stride(-3) < like.stride(-2):
        like = like.transpose(-3, -2)
        return like.new_empty(*like.shape[:-1], channels, dtype=dtype).transpose(-3, -2)
    return like.new_empty(*like.shape[:-1], channels, dtype=dtype)


def product(q: Tensor, k: Tensor, v: Tensor, dtype: torch.dtype) -> Tensor:
    """q ``(..., M, d)``, k ``(..., N, d)``, v ``(..., N, e)`` -> ``(..., M, e)``."""
    out = empty(q, v.shape[-1], dtype)
    q, k, v = map(_four_dimensional, (q, k, v))
    centre = _centre(q, k)
    _launch(q, centre, _prepared(k, v, centre), None, out)
    return out


def gradients(grad: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v from the gradient ``(..., M, e)`` of the product."""
    grads = tuple(empty(x, x.shape[-1], x.dtype) for x in (q, k, v))
    grad, q, k, v = map(_four_dimensional, (grad, q, k, v))
    centre = _centre(q, k)
    _launch(q, centre, _prepared(k, v, centre), grad, grads[0])
    _launch(k, centre, _prepared(q, grad, centre), v, *grads[1:])
    return grads

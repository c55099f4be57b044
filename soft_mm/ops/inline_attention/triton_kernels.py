"""Attention plus dynamic convolution in two passes over the tokens, and their gradients in two.

The kernels read q, k and v where the projection wrote them. They find a window's tokens by their
position, so the map is neither shifted, padded nor cut.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..shapes import ceil_div
from ..windows import Windows

# Tokens of a tile, by the bytes of a number. Half as many where nine sums stay in registers.
TOKENS = {2: 64, 4: 32}
MAX_CHANNELS = 64  # of a head: wider tiles do not fit in registers
MAX_EXTENT = 2**31  # elements of an image's q, k and v: offsets within it are 32-bit
TARGET_BLOCKS = 1024  # enough to occupy a GPU; with fewer windows and heads, their tokens are split
# Statistics of a head are rows of d numbers. The first d are a matrix: the scaled covariance of k and
# v, or, in the backward pass, the sum of qᵀ·grad. The others are:
MEANS = 3  # the mean of k, the mean of v, the number of tokens
SUMS = 10  # the sum of grad, the gradients of the nine taps of the filters


def supports(qkv: Tensor, num_heads: int) -> bool:
    """Whether the kernels support these tokens ``(B, T + N, 3·C)``."""
    return (
        qkv.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and qkv.numel() > 0
        and qkv.shape[1] * qkv.shape[2] < MAX_EXTENT
        and qkv.shape[2] // (3 * num_heads) <= MAX_CHANNELS
    )


@triton.jit
def _program(parts, heads, windows, H, W, h, w, down, right):
    """Part of a window's tokens, head, image, index of window and head, and the window: its first
    token's position in the padded map, the map's size and its own."""
    program = tl.program_id(0)
    head, part, group = program % heads, program // heads % parts, program // (heads * parts)
    window, columns = group % windows, tl.cdiv(W, w)
    top, left = window // columns * h + down, window % columns * w + right
    image, index = (group // windows).to(tl.int64), group.to(tl.int64) * heads + head
    return part, head, image, index, (top, left, H, W, h, w)


@triton.jit
def _place(y, x, window, WHOLE: tl.constexpr):
    """Index in the map of position (y, x) of a window, and whether a token is there."""
    top, left, H, W, h, w = window
    exists = (y >= 0) & (y < h) & (x >= 0) & (x < w)
    if not WHOLE:  # a shifted window continues at the opposite border of the padded map
        y, x = (y + top) % (tl.cdiv(H, h) * h), (x + left) % (tl.cdiv(W, w) * w)
        exists &= (y < H) & (x < W)
    return y * W + x, exists


@triton.jit
def _tile(first, extra, window, TOKENS: tl.constexpr, WHOLE: tl.constexpr):
    """Positions of a window's tokens, from ``first`` on, extra ones first and above the window;
    their index in the image, and whether they exist."""
    position, w = first + tl.arange(0, TOKENS) - extra, window[5]
    y, x = tl.where(position < 0, -2, position // w), position % w
    place, exists = _place(y, x, window, WHOLE)
    return y, x, tl.where(position < 0, position, place) + extra, exists | (position < 0)


@triton.jit
def _load(x, rows, exists, stride, c, d: tl.constexpr):
    """Channels of tokens; 0 where there is none."""
    mask = exists[:, None] & (c < d)[None, :]
    return tl.load(x + rows[:, None] * stride + c[None, :], mask=mask, other=0.0)


@triton.jit
def _store(x, rows, exists, stride, c, d: tl.constexpr, values):
    mask = exists[:, None] & (c < d)[None, :]
    tl.store(x + rows[:, None] * stride + c[None, :], values, mask=mask)


@triton.jit
def _load_tap(v, tap, y, x, extra, window, stride, c, d: tl.constexpr, WHOLE: tl.constexpr):
    """Channels of the tokens' neighbours at a tap of the filters in fp32; 0 outside the window."""
    place, exists = _place(y + tap // 3 - 1, x + tap % 3 - 1, window, WHOLE)
    return _load(v, place + extra, exists, stride, c, d).to(tl.float32)


@triton.jit
def _convolve(
    v,
    filters,
    FLIPPED: tl.constexpr,
    y,
    x,
    extra,
    window,
    stride,
    c,
    d: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """Convolution of the tokens with filters ``(d, 3, 3)``, in fp32."""
    total = tl.zeros((y.shape[0], c.shape[0]), tl.float32)
    for tap in tl.static_range(9):
        weight = tl.load(filters + c * 9 + (8 - tap if FLIPPED else tap), mask=c < d, other=0.0)
        neighbours = _load_tap(v, tap, y, x, extra, window, stride, c, d, WHOLE)
        total += weight.to(tl.float32)[None, :] * neighbours
    return total


@triton.jit
def _load_row(x, row, c, d: tl.constexpr):
    """Row of a head's statistics."""
    return tl.load(x + row * d + c, mask=c < d, other=0.0)


@triton.jit
def _store_row(x, row, c, d: tl.constexpr, values):
    tl.store(x + row * d + c, values, mask=c < d)


@triton.jit
def _load_matrix(x, c, d: tl.constexpr):
    """The first d rows of a head's statistics."""
    inside = (c < d)[:, None] & (c < d)[None, :]
    return tl.load(x + c[:, None] * d + c[None, :], mask=inside, other=0.0)


@triton.jit
def _store_matrix(x, c, d: tl.constexpr, values):
    inside = (c < d)[:, None] & (c < d)[None, :]
    tl.store(x + c[:, None] * d + c[None, :], values, mask=inside)


VARYING = ('parts', 'windows', 'extra', 'H', 'W', 'h', 'w', 'down', 'right', 'size')


@triton.jit(do_not_specialize=VARYING)
def _sum_keys_and_values(
    qkv,
    out,
    parts,
    windows,
    extra,
    H,
    W,
    h,
    w,
    down,
    right,
    size,
    heads: tl.constexpr,
    d: tl.constexpr,
    D: tl.constexpr,
    TOKENS: tl.constexpr,
    WHOLE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Sums over a part of a window's tokens: kᵀ·v, k, v and the number of tokens."""
    part, head, image, index, window = _program(parts, heads, windows, H, W, h, w, down, right)
    c, stride = tl.arange(0, D), 3 * heads * d
    k = qkv + image * size * stride + (heads + head) * d
    product = tl.zeros((D, D), tl.float32)
    k_sum, v_sum = tl.zeros((TOKENS, D), tl.float32), tl.zeros((TOKENS, D), tl.float32)
    count = tl.zeros((TOKENS,), tl.float32)
    for first in range(part * TOKENS, extra + h * w, parts * TOKENS):
        _, _, rows, exists = _tile(first, extra, window, TOKENS, WHOLE)
        keys = _load(k, rows, exists, stride, c, d).to(tl.float32)
        values = _load(k + heads * d, rows, exists, stride, c, d).to(tl.float32)
        product += tl.dot(tl.trans(keys), values, input_precision=PRECISION)
        k_sum += keys
        v_sum += values
        count += exists.to(tl.float32)
    out += (index * parts + part) * (d + 3) * d
    _store_matrix(out, c, d, product)
    _store_row(out, d, c, d, tl.sum(k_sum, 0))
    _store_row(out, d + 1, c, d, tl.sum(v_sum, 0))
    _store_row(out, d + 2, c, d, tl.sum(count, 0) + tl.zeros((D,), tl.float32))


@triton.jit(do_not_specialize=['parts'])
def _covariance(sums, out, parts, d: tl.constexpr, D: tl.constexpr):
    """Scaled covariance of k and v, their means and the number of tokens, from the sums of parts."""
    index, c = tl.program_id(0).to(tl.int64), tl.arange(0, D)
    sums, out = sums + index * parts * (d + 3) * d, out + index * (d + 3) * d
    product, zero = tl.zeros((D, D), tl.float32), tl.zeros((D,), tl.float32)
    k_sum, v_sum, count = zero, zero, zero
    for _ in range(parts):
        product += _load_matrix(sums, c, d)
        k_sum += _load_row(sums, d, c, d)
        v_sum += _load_row(sums, d + 1, c, d)
        count += _load_row(sums, d + 2, c, d)
        sums += (d + 3) * d
    n = tl.max(count, 0)
    k_mean, v_mean = k_sum / n, v_sum / n
    _store_matrix(out, c, d, d**-0.5 * (product / n - k_mean[:, None] * v_mean[None, :]))
    _store_row(out, d, c, d, k_mean)
    _store_row(out, d + 1, c, d, v_mean)
    _store_row(out, d + 2, c, d, count)


@triton.jit(do_not_specialize=VARYING)
def _attend(
    qkv,
    statistics,
    filters,
    bias,
    out,
    parts,
    windows,
    extra,
    H,
    W,
    h,
    w,
    down,
    right,
    size,
    heads: tl.constexpr,
    d: tl.constexpr,
    D: tl.constexpr,
    TOKENS: tl.constexpr,
    WHOLE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Attention plus convolution for a tile of tokens, one part of a window."""
    part, head, image, index, window = _program(parts, heads, windows, H, W, h, w, down, right)
    c, dims = tl.arange(0, D), heads * d
    q = qkv + image * size * (3 * dims) + head * d
    statistics += index * (d + 3) * d
    y, x, rows, exists = _tile(part * TOKENS, extra, window, TOKENS, WHOLE)
    queries = _load(q, rows, exists, 3 * dims, c, d).to(tl.float32)
    total = tl.dot(queries, _load_matrix(statistics, c, d), input_precision=PRECISION)
    total += _load_row(statistics, d + 1, c, d)[None, :]
    filters += index * d * 9
    total += _convolve(q + 2 * dims, filters, False, y, x, extra, window, 3 * dims, c, d, WHOLE)
    if bias is not None:
        total += _load_row(bias, head, c, d).to(tl.float32)[None, :]
    _store(out + image * size * dims + head * d, rows, exists, dims, c, d, total)


@triton.jit(do_not_specialize=VARYING)
def _sum_gradients(
    g,
    qkv,
    out,
    parts,
    windows,
    extra,
    H,
    W,
    h,
    w,
    down,
    right,
    size,
    heads: tl.constexpr,
    d: tl.constexpr,
    D: tl.constexpr,
    TOKENS: tl.constexpr,
    WHOLE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Sums over a part of a window's tokens: qᵀ·grad, grad, and grad times v at each tap."""
    part, head, image, index, window = _program(parts, heads, windows, H, W, h, w, down, right)
    c, dims = tl.arange(0, D), heads * d
    q, g = qkv + image * size * (3 * dims) + head * d, g + image * size * dims + head * d
    product, zero = tl.zeros((D, D), tl.float32), tl.zeros((TOKENS, D), tl.float32)
    g_sum, taps = zero, (zero, zero, zero, zero, zero, zero, zero, zero, zero)
    for first in range(part * TOKENS, extra + h * w, parts * TOKENS):
        y, x, rows, exists = _tile(first, extra, window, TOKENS, WHOLE)
        queries = _load(q, rows, exists, 3 * dims, c, d).to(tl.float32)
        gradients = _load(g, rows, exists, dims, c, d).to(tl.float32)
        product += tl.dot(tl.trans(queries), gradients, input_precision=PRECISION)
        g_sum += gradients
        added = ()
        for tap in tl.static_range(9):
            v = _load_tap(q + 2 * dims, tap, y, x, extra, window, 3 * dims, c, d, WHOLE)
            added += (taps[tap] + gradients * v,)
        taps = added
    out += (index * parts + part) * (d + 10) * d
    _store_matrix(out, c, d, product)
    _store_row(out, d, c, d, tl.sum(g_sum, 0))
    for tap in tl.static_range(9):
        _store_row(out, d + 1 + tap, c, d, tl.sum(taps[tap], 0))


@triton.jit(do_not_specialize=VARYING)
def _gradients(
    g,
    qkv,
    statistics,
    sums,
    filters,
    out,
    parts,
    windows,
    extra,
    H,
    W,
    h,
    w,
    down,
    right,
    size,
    heads: tl.constexpr,
    d: tl.constexpr,
    D: tl.constexpr,
    TOKENS: tl.constexpr,
    WHOLE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradients of q, k and v for a tile of tokens, one part of a window."""
    part, head, image, index, window = _program(parts, heads, windows, H, W, h, w, down, right)
    c, dims = tl.arange(0, D), heads * d
    place = image * size * (3 * dims) + head * d
    k, out, g = qkv + place + dims, out + place, g + image * size * dims + head * d
    statistics, sums = statistics + index * (d + 3) * d, sums + index * (d + 10) * d
    y, x, rows, exists = _tile(part * TOKENS, extra, window, TOKENS, WHOLE)

    gradients = _load(g, rows, exists, dims, c, d).to(tl.float32)
    covariance = _load_matrix(statistics, c, d)
    grad_q = tl.dot(gradients, tl.trans(covariance), input_precision=PRECISION)
    _store(out, rows, exists, 3 * dims, c, d, grad_q)

    n = tl.max(_load_row(statistics, d + 2, c, d), 0)
    grad_covariance = _load_matrix(sums, c, d) * (d**-0.5 / n)
    values = _load(k + dims, rows, exists, 3 * dims, c, d).to(tl.float32)
    values -= _load_row(statistics, d + 1, c, d)[None, :]
    grad_k = tl.dot(values, tl.trans(grad_covariance), input_precision=PRECISION)
    _store(out + dims, rows, exists, 3 * dims, c, d, grad_k)

    keys = _load(k, rows, exists, 3 * dims, c, d).to(tl.float32)
    keys -= _load_row(statistics, d, c, d)[None, :]
    grad_v = tl.dot(keys, grad_covariance, input_precision=PRECISION)
    grad_v += (_load_row(sums, d, c, d) / n)[None, :]
    grad_v += _convolve(g, filters + index * d * 9, True, y, x, extra, window, dims, c, d, WHOLE)
    _store(out + 2 * dims, rows, exists, 3 * dims, c, d, grad_v)


class _Launch:
    """The launches for tokens ``(B, T + N, 3·C)`` in windows of a map; see :class:`Windows`."""

    def __init__(
        self, qkv: Tensor, num_heads: int, hw: list[int], size: list[int], shift: list[int]
    ) -> None:
        batch, num_tokens, channels = qkv.shape
        windows = ceil_div(hw[0], size[0]) * ceil_div(hw[1], size[1])
        extra = num_tokens - hw[0] * hw[1]
        self.device, self.d = qkv.device, channels // (3 * num_heads)
        self.blocks = batch * windows * num_heads
        self.tokens = extra + size[0] * size[1]  # of a window, with padding
        self.tile = TOKENS[qkv.dtype.itemsize]
        self.geometry = windows, extra, *hw, *size, *shift, num_tokens
        self.options = dict(
            heads=num_heads,
            d=self.d,
            D=max(16, triton.next_power_of_2(self.d)),
            WHOLE=list(hw) == list(size),
            # tf32 represents half precision exactly; fp32 needs three tf32 products.
            PRECISION='tf32x3' if qkv.dtype == torch.float32 else 'tf32',
            num_warps=4 if self.d <= 32 else 8,
        )

    def sum(self, kernel, rows: int, tile: int, *tensors: Tensor) -> Tensor:
        """Statistics of parts of each window, ``(B · windows · heads, parts, d + rows, d)``."""
        # The number of parts depends only on the sizes, so results are bitwise reproducible.
        parts = max(1, min(TARGET_BLOCKS // self.blocks, ceil_div(self.tokens, 4 * tile)))
        shape = self.blocks, parts, self.d + rows, self.d
        out = torch.empty(shape, dtype=torch.float32, device=self.device)
        self._run(kernel, parts, tile, *tensors, out)
        return out

    def apply(self, kernel, *tensors: Tensor | None) -> None:
        """Run a program for each tile of tokens."""
        self._run(kernel, ceil_div(self.tokens, self.tile), self.tile, *tensors)

    def _run(self, kernel, parts: int, tile: int, *tensors: Tensor | None) -> None:
        with torch.cuda.device_of(tensors[0]):
            kernel[self.blocks * parts,](
                *tensors, parts, *self.geometry, **self.options, TOKENS=tile
            )


@torch.library.custom_op('soft_mm::inline_attention', mutates_args=())
def _attention(
    qkv: Tensor,
    filters: Tensor,
    bias: Tensor | None,
    num_heads: int,
    hw: list[int],
    size: list[int],
    shift: list[int],
) -> tuple[Tensor, Tensor]:
    """The result ``(B, T + N, C)`` and, for the backward pass, the heads' statistics."""
    qkv, filters = qkv.contiguous(), filters.contiguous()
    launch = _Launch(qkv, num_heads, hw, size, shift)
    sums = launch.sum(_sum_keys_and_values, MEANS, launch.tile, qkv)
    statistics = torch.empty_like(sums[:, 0])
    with torch.cuda.device_of(qkv):
        _covariance[launch.blocks,](sums, statistics, sums.shape[1], launch.d, launch.options['D'])
    out = qkv.new_empty(*qkv.shape[:2], num_heads * launch.d)
    launch.apply(_attend, qkv, statistics, filters, bias, out)
    return out, statistics


@torch.library.custom_op('soft_mm::inline_attention_backward', mutates_args=())
def _attention_backward(
    grad: Tensor,
    qkv: Tensor,
    statistics: Tensor,
    filters: Tensor,
    num_heads: int,
    hw: list[int],
    size: list[int],
    shift: list[int],
) -> tuple[Tensor, Tensor]:
    """Gradient of qkv and, by window and head, the sums of grad and of the taps' gradients,
    ``(B · windows · heads, 10, d)``."""
    grad, qkv, filters = grad.contiguous(), qkv.contiguous(), filters.contiguous()
    launch = _Launch(qkv, num_heads, hw, size, shift)
    sums = launch.sum(_sum_gradients, SUMS, launch.tile // 2, grad, qkv).sum(1)
    out = torch.empty_like(qkv)
    launch.apply(_gradients, grad, qkv, statistics, sums, filters, out)
    return out, sums[:, launch.d :].clone()


def fused_attention(
    qkv: Tensor, filters: Tensor, bias: Tensor | None, num_heads: int, windows: Windows
) -> Tensor:
    """q, k and v of tokens ``(B, T + N, 3·C)``, filters ``(B · windows, C, 3, 3)``, bias ``(C,)`` ->
    attention plus convolution, ``(B, T + N, C)``."""
    return _attention(qkv, filters, bias, num_heads, windows.hw, windows.size, windows.shift)[0]


@_attention.register_fake
def _(
    qkv: Tensor,
    filters: Tensor,
    bias: Tensor | None,
    num_heads: int,
    hw: list[int],
    size: list[int],
    shift: list[int],
) -> tuple[Tensor, Tensor]:
    d, heads = qkv.shape[2] // (3 * num_heads), filters.shape[0] * num_heads
    return (
        qkv.new_empty(*qkv.shape[:2], num_heads * d),
        qkv.new_empty(heads, d + MEANS, d, dtype=torch.float32),
    )


@_attention_backward.register_fake
def _(
    grad: Tensor,
    qkv: Tensor,
    statistics: Tensor,
    filters: Tensor,
    num_heads: int,
    hw: list[int],
    size: list[int],
    shift: list[int],
) -> tuple[Tensor, Tensor]:
    heads, _, d = statistics.shape
    return qkv.new_empty(qkv.shape), statistics.new_empty(heads, SUMS, d)


def _setup_context(ctx, inputs, output):
    qkv, filters, bias, *ctx.sizes = inputs
    ctx.save_for_backward(qkv, output[1], filters)
    ctx.has_bias = bias is not None


def _backward(ctx, grad: Tensor, _):
    qkv, statistics, filters = ctx.saved_tensors
    grad_qkv, sums = _attention_backward(grad, qkv, statistics, filters, *ctx.sizes)
    grad_filters = sums[:, 1:].mT.reshape(filters.shape).to(filters.dtype)
    grad_bias = sums[:, 0].reshape(filters.shape[:2]).sum(0) if ctx.has_bias else None
    return grad_qkv, grad_filters, grad_bias, None, None, None, None


_attention.register_autograd(_backward, setup_context=_setup_context)

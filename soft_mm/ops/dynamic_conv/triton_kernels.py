"""Dynamic convolution of channel-last tokens, read in place, and its gradient."""

import torch
import triton
import triton.language as tl
from torch import Tensor

CHANNELS = 64  # of a program's tile
TOKENS = 32  # of a program's tile, so that a thread uses a filter's weights for several tokens
STEP = 16  # tokens of which a program adds the nine terms of the filters' gradient at a time
MAX_MAP_EXTENT = 2**31  # elements of memory that a map spans: offsets within it are 32-bit
TARGET_BLOCKS = 512  # enough to occupy a GPU; for few maps, the filters' gradient is split
# Sizes that vary with the image. `stride` and `channels` are the layer's: what Triton knows about
# them, divisibility by 16 above all, makes the loads wide.
VARYING = ['images', 'length', 'height', 'width', 'map_tokens']


def supports(v: Tensor) -> bool:
    """Whether the kernels support these maps."""
    return v.numel() > 0 and v.shape[1] * max(v.shape[2], v.stride(1)) < MAX_MAP_EXTENT


@triton.jit
def _load_tap(v, token, channel, height, width, channels, stride, TAP: tl.constexpr):
    """Load the neighbours of the tokens at a filter tap in fp32; 0 outside the map."""
    count, x = height * width, token % width
    row = token + (TAP // 3 - 1) * width
    inside = (token < count) & (row >= 0) & (row < count)
    if TAP % 3 == 0:
        inside &= x > 0
    if TAP % 3 == 2:
        inside &= x < width - 1
    # The tap shifts the pointer to the map, so that all taps share the tokens' offsets.
    v += ((TAP // 3 - 1) * width + TAP % 3 - 1) * stride
    return tl.load(
        v + (token * stride + channel), mask=inside & (channel < channels), other=0.0
    ).to(tl.float32)


@triton.jit
def convolved(
    v, filters, token, channel, height, width, channels, stride, FLIPPED: tl.constexpr = False
):
    """Convolve some tokens and channels of a map, zero-padded, with its 3×3 filters.

    Args:
        v: pointer to the map's first token, ``(H·W, C)`` with contiguous channels.
        filters: pointer to the map's filters, ``(9, C)``.
        token: indices ``(TOKENS, 1)``; those from H·W on give 0.
        channel: indices ``(1, CHANNELS)``; those from C on give 0.
        height, width, channels: H, W and C.
        stride: elements from a token to the next.
        FLIPPED: rotate the filters by 180°.

    Returns:
        ``(TOKENS, CHANNELS)`` in fp32.
    """
    total = tl.zeros((token.shape[0], channel.shape[1]), tl.float32)
    for tap in tl.static_range(9):
        weight = filters + (8 - tap if FLIPPED else tap) * channels + channel
        weight = tl.load(weight, mask=channel < channels, other=0.0).to(tl.float32)
        total += weight * _load_tap(v, token, channel, height, width, channels, stride, tap)
    return total


@triton.jit(do_not_specialize=VARYING)
def _convolve(
    v,
    filters,
    bias,
    out,
    height,
    width,
    channels,
    map_tokens,
    stride,
    FLIPPED: tl.constexpr,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    count = height * width
    tiles = tl.cdiv(count, TOKENS)
    image = (tl.program_id(0) // tiles).to(tl.int64)
    token = (tl.program_id(0) % tiles * TOKENS + tl.arange(0, TOKENS))[:, None]
    channel = (tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS))[None, :]
    known = channel < channels
    v += image * map_tokens * stride
    filters += image * 9 * channels
    total = convolved(v, filters, token, channel, height, width, channels, stride, FLIPPED)
    if bias is not None:
        total += tl.load(bias + channel, mask=known, other=0.0).to(tl.float32)
    out += image * count * channels
    tl.store(out + (token * channels + channel), total, mask=known & (token < count))


@triton.jit(do_not_specialize=VARYING)
def _correlate(
    g,
    v,
    out,
    images,
    length,
    height,
    width,
    channels,
    map_tokens,
    stride,
    STEP: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Filters' gradient, as one partial sum for each split, ``length`` of a map's tokens."""
    count, split = height * width, tl.program_id(0) // images
    image = (tl.program_id(0) % images).to(tl.int64)
    channel = (tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS))[None, :]
    known = channel < channels
    g += image * count * channels
    v += image * map_tokens * stride
    zero = tl.zeros((STEP, CHANNELS), tl.float32)
    t0, t1, t2, t3, t4, t5, t6, t7, t8 = zero, zero, zero, zero, zero, zero, zero, zero, zero
    for first in range(split * length, min(split * length + length, count), STEP):
        token = (first + tl.arange(0, STEP))[:, None]
        grad = tl.load(
            g + (token * channels + channel), mask=(token < count) & known, other=0.0
        ).to(tl.float32)
        t0 += grad * _load_tap(v, token, channel, height, width, channels, stride, 0)
        t1 += grad * _load_tap(v, token, channel, height, width, channels, stride, 1)
        t2 += grad * _load_tap(v, token, channel, height, width, channels, stride, 2)
        t3 += grad * _load_tap(v, token, channel, height, width, channels, stride, 3)
        t4 += grad * _load_tap(v, token, channel, height, width, channels, stride, 4)
        t5 += grad * _load_tap(v, token, channel, height, width, channels, stride, 5)
        t6 += grad * _load_tap(v, token, channel, height, width, channels, stride, 6)
        t7 += grad * _load_tap(v, token, channel, height, width, channels, stride, 7)
        t8 += grad * _load_tap(v, token, channel, height, width, channels, stride, 8)
    out += tl.program_id(0).to(tl.int64) * 9 * channels + channel
    tl.store(out, tl.sum(t0, 0)[None, :], mask=known)
    tl.store(out + channels, tl.sum(t1, 0)[None, :], mask=known)
    tl.store(out + 2 * channels, tl.sum(t2, 0)[None, :], mask=known)
    tl.store(out + 3 * channels, tl.sum(t3, 0)[None, :], mask=known)
    tl.store(out + 4 * channels, tl.sum(t4, 0)[None, :], mask=known)
    tl.store(out + 5 * channels, tl.sum(t5, 0)[None, :], mask=known)
    tl.store(out + 6 * channels, tl.sum(t6, 0)[None, :], mask=known)
    tl.store(out + 7 * channels, tl.sum(t7, 0)[None, :], mask=known)
    tl.store(out + 8 * channels, tl.sum(t8, 0)[None, :], mask=known)


def _tokens(v: Tensor) -> Tensor:
    """Make channels contiguous and the distance of two maps a multiple of that of two tokens.

    Maps then are as aligned as the tokens' distance tells, which depends on the layer only.
    """
    in_place = v.stride(2) == 1 and v.stride(1) > 0 and v.stride(0) % v.stride(1) == 0
    return v if in_place else v.contiguous()


def _grid(programs: int, channels: int) -> tuple[int, int]:
    """The grid's first dimension goes up to 2³¹ − 1, the others only up to 65535."""
    return programs, triton.cdiv(channels, CHANNELS)


def _launch(
    v: Tensor, filters: Tensor, bias: Tensor | None, height: int, width: int, flipped: bool
) -> Tensor:
    v, out = _tokens(v), v.new_empty(v.shape)
    images, count, channels = v.shape
    with torch.cuda.device_of(v):
        _convolve[_grid(images * triton.cdiv(count, TOKENS), channels)](
            v,
            filters.flatten(2).mT.float().contiguous(),  # in fp32, so that no thread converts them
            bias,
            out,
            height,
            width,
            channels,
            v.stride(0) // v.stride(1),
            v.stride(1),
            flipped,
            TOKENS,
            CHANNELS,
        )
    return out


@torch.library.custom_op('soft_mm::dynamic_conv', mutates_args=())
def fused_dynamic_conv(
    v: Tensor, filters: Tensor, bias: Tensor | None, height: int, width: int
) -> Tensor:
    """v ``(B, H·W, C)``, filters ``(B, C, 3, 3)``, bias ``(C,)`` -> ``(B, H·W, C)``."""
    return _launch(v, filters, bias, height, width, flipped=False)


@torch.library.custom_op('soft_mm::dynamic_conv_backward', mutates_args=())
def _gradients(
    grad: Tensor, v: Tensor, filters: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor]:
    grad, v = grad.contiguous(), _tokens(v)
    images, count, channels = v.shape
    blocks = images * triton.cdiv(channels, CHANNELS)
    splits = max(1, min(TARGET_BLOCKS // blocks, triton.cdiv(count, 8 * STEP)))
    length = triton.cdiv(triton.cdiv(count, splits), STEP) * STEP
    splits = triton.cdiv(count, length)
    sums = v.new_empty(splits, images, 9, channels, dtype=torch.float32)
    with torch.cuda.device_of(v):
        _correlate[_grid(splits * images, channels)](
            grad,
            v,
            sums,
            images,
            length,
            height,
            width,
            channels,
            v.stride(0) // v.stride(1),
            v.stride(1),
            STEP,
            CHANNELS,
        )
    grad_filters = sums.sum(0).to(filters.dtype).mT.reshape(filters.shape)
    return _launch(grad, filters, None, height, width, flipped=True), grad_filters


@fused_dynamic_conv.register_fake
def _(v: Tensor, filters: Tensor, bias: Tensor | None, height: int, width: int) -> Tensor:
    return v.new_empty(v.shape)


@_gradients.register_fake
def _(grad: Tensor, v: Tensor, filters: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    return grad.new_empty(grad.shape), filters.new_empty(filters.shape)


def _setup_context(ctx, inputs, output):
    v, filters, bias, *ctx.hw = inputs
    ctx.save_for_backward(v, filters)
    ctx.has_bias = bias is not None


def _backward(ctx, grad: Tensor):
    grad_bias = grad.sum((0, 1)) if ctx.has_bias else None
    return *_gradients(grad, *ctx.saved_tensors, *ctx.hw), grad_bias, None, None


fused_dynamic_conv.register_autograd(_backward, setup_context=_setup_context)

"""Dynamic convolution of channel-last tokens, read in place, and its gradient."""

import torch
import triton
import triton.language as tl
from torch import Tensor

TOKENS, CHANNELS = 8, 64  # size of a program's tile
MAX_MAP_EXTENT = 2**31  # elements of memory that a map spans: offsets within it are 32-bit
TARGET_BLOCKS = 512  # enough to occupy a GPU; for few maps, the filters' gradient is split


def supports(v: Tensor) -> bool:
    """Whether the kernels support these maps."""
    return v.numel() > 0 and v.shape[1] * max(v.shape[2], v.stride(1)) < MAX_MAP_EXTENT


@triton.jit
def _load_tap(v, token, tap, count, height, width, stride, channel, channels):
    """Load the neighbours of the tokens at one filter tap in fp32; 0 outside the map."""
    y, x = token // width + tap // 3 - 1, token % width + tap % 3 - 1
    inside = (token < count) & (y >= 0) & (y < height) & (x >= 0) & (x < width)
    place = (y * width + x) * stride
    return tl.load(v + place + channel, mask=inside & (channel < channels), other=0.0).to(
        tl.float32
    )


@triton.jit
def _convolve(
    v,
    filters,
    bias,
    out,
    height,
    width,
    channels,
    map_stride,
    stride,
    FLIPPED: tl.constexpr,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    count, image = height * width, tl.program_id(1).to(tl.int64)
    token = (tl.program_id(0) * TOKENS + tl.arange(0, TOKENS))[:, None]
    channel = (tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS))[None, :]
    known = channel < channels
    total = tl.zeros((TOKENS, CHANNELS), tl.float32)
    if bias is not None:
        total += tl.load(bias + channel, mask=known, other=0.0).to(tl.float32)
    for tap in tl.static_range(9):
        weight = 8 - tap if FLIPPED else tap
        weight = tl.load(filters + (image * 9 + weight) * channels + channel, mask=known, other=0.0)
        total += weight.to(tl.float32) * _load_tap(
            v + image * map_stride, token, tap, count, height, width, stride, channel, channels
        )
    tl.store(
        out + image * count * channels + token * channels + channel,
        total,
        mask=known & (token < count),
    )


@triton.jit
def _correlate(
    g,
    v,
    out,
    images,
    height,
    width,
    channels,
    map_stride,
    stride,
    splits,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Filters' gradient, as one partial sum for each split of a map's tokens."""
    count, split, image = height * width, tl.program_id(0), tl.program_id(1).to(tl.int64)
    channel = (tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS))[None, None, :]
    tap = tl.arange(0, 16)[None, :, None]  # nine taps, padded to a power of two
    total = tl.zeros((16, CHANNELS), tl.float32)
    for first in range(split * TOKENS, count, splits * TOKENS):
        token = (first + tl.arange(0, TOKENS))[:, None, None]
        grad = tl.load(
            g + image * count * channels + token * channels + channel,
            mask=(token < count) & (channel < channels),
            other=0.0,
        ).to(tl.float32)
        total += tl.sum(
            grad
            * _load_tap(
                v + image * map_stride, token, tap, count, height, width, stride, channel, channels
            ),
            0,
        )
    tap, channel = tl.arange(0, 16)[:, None], tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    out += (split * images + image) * 9 * channels
    tl.store(
        out + tap * channels + channel[None, :],
        total,
        mask=(tap < 9) & (channel[None, :] < channels),
    )


def _tokens(v: Tensor) -> Tensor:
    """Make the channels of a token contiguous."""
    return v if v.stride(-1) == 1 else v.contiguous()


def _launch(
    v: Tensor, filters: Tensor, bias: Tensor | None, height: int, width: int, flipped: bool
) -> Tensor:
    v, out = _tokens(v), v.new_empty(v.shape)
    images, count, channels = v.shape
    with torch.cuda.device_of(v):
        _convolve[triton.cdiv(count, TOKENS), images, triton.cdiv(channels, CHANNELS)](
            v,
            filters.flatten(2).mT.contiguous(),
            bias,
            out,
            height,
            width,
            channels,
            *v.stride()[:2],
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
    splits = max(1, min(TARGET_BLOCKS // blocks, triton.cdiv(count, 8 * TOKENS)))
    sums = v.new_empty(splits, images, 9, channels, dtype=torch.float32)
    with torch.cuda.device_of(v):
        _correlate[splits, images, triton.cdiv(channels, CHANNELS)](
            grad,
            v,
            sums,
            images,
            height,
            width,
            channels,
            *v.stride()[:2],
            splits,
            TOKENS // 2,
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

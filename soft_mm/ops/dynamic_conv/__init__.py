"""Depth-wise convolution of each feature map with its own filters."""

from torch import Tensor

from ..backend import choose_backend, describe, log_fallback, runs_triton
from ..extension import missing
from ..sizes import known
from .extension import compiled_dynamic_conv
from .grouped import grouped_dynamic_conv
from .reference import dynamic_conv as shifted_dynamic_conv


def dynamic_conv(
    v: Tensor,
    filters: Tensor,
    hw: tuple[int, int],
    bias: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Convolve each feature map, zero-padded, with its own 3×3 filters (InLine, arXiv 2412.06590).

    Args:
        v: tokens of the maps ``(B, H·W, C)``, any strides.
        filters: ``(B, C, 3, 3)``, one per map and channel.
        hw: height and width ``(H, W)`` of the maps, in tokens.
        bias: ``(C,)``, shared by all maps.
        backend: 'triton', the default on a GPU, and 'extension', the compiled C++ op, which is the
            default on a CPU if it is built, read the tokens in place; 'torch' runs a convolution
            with B·C groups; 'standard' sums nine shifted maps, because other runtimes need a fixed
            number of groups.

    Returns:
        ``(B, H·W, C)``.

    Raises:
        ValueError: if the shapes are inconsistent or the backend does not exist.
        RuntimeError: if the backend is 'extension' on a CPU and the extension is not built.
    """
    b, n, c = v.shape
    if (
        n != hw[0] * hw[1]
        or filters.shape != (b, c, 3, 3)
        or bias is not None
        and bias.shape != (c,)
    ):
        raise ValueError(
            'v must be (B, H·W, C), filters (B, C, 3, 3) and bias (C,), got '
            f'{tuple(v.shape)}, {tuple(filters.shape)} and '
            f'{bias if bias is None else tuple(bias.shape)} for (H, W) = {tuple(hw)}'
        )
    backend = choose_backend(backend, v.device, 'torch' if missing() else 'extension')
    if backend == 'standard' or known(b == 0):  # for no maps, a convolution would have no groups
        return shifted_dynamic_conv(v, filters, hw, bias)
    if backend == 'extension':
        if v.device.type == 'cpu':
            bias = None if bias is None else bias.to(v.dtype)
            return compiled_dynamic_conv(v, filters.to(v.dtype), bias, *hw)
        log_fallback('dynamic_conv', backend, f'the compiled op runs on a CPU, not on {v.device}')
    if backend == 'triton' and runs_triton('dynamic_conv', v.device):
        from . import triton_kernels

        if triton_kernels.supports(v):
            return triton_kernels.fused_dynamic_conv(v, filters.to(v.dtype), bias, *hw)
        log_fallback('dynamic_conv', backend, describe(v))
    return grouped_dynamic_conv(v, filters, bias, hw)

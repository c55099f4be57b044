"""Depth-wise convolution of each map by its own filters."""

from torch import Tensor

from ..extension import missing
from ..kernel import chosen_kernel
from .extension import compiled_dynamic_conv
from .grouped import grouped_dynamic_conv
from .reference import dynamic_conv as shifted_dynamic_conv


def dynamic_conv(
    v: Tensor,
    filters: Tensor,
    hw: tuple[int, int],
    bias: Tensor | None = None,
    kernel: str | None = None,
) -> Tensor:
    """Each map convolved with its own 3×3 filters, with zeros around it (InLine, arXiv 2412.06590).

    Args:
        v: tokens of the maps ``(B, H·W, C)``, any strides.
        filters: ``(B, C, 3, 3)``, one a map and channel.
        hw: ``(H, W)``.
        bias: ``(C,)``, the same for all maps.
        kernel: 'triton', by default on a GPU, and 'cuda', the compiled extension, by default on a
            CPU where it is built, leave the tokens where they are; 'torch' is a convolution of B·C
            groups; 'standard' is nine shifted maps, as in other runtimes the number of groups
            cannot vary.

    Returns:
        ``(B, H·W, C)``.

    Raises:
        ValueError: if the shapes do not go together, or the kernel does not exist.
        RuntimeError: for 'cuda' on a CPU where the extension is not built.
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
    kernel = chosen_kernel(kernel, v.device, 'torch' if missing() else 'cuda')
    if kernel == 'standard':
        return shifted_dynamic_conv(v, filters, hw, bias)
    if kernel == 'cuda' and v.device.type == 'cpu':
        bias = None if bias is None else bias.to(v.dtype)
        return compiled_dynamic_conv(v, filters.to(v.dtype), bias, *hw)
    if kernel == 'triton':
        from . import triton_kernels

        if triton_kernels.take(v):
            return triton_kernels.fused_dynamic_conv(v, filters.to(v.dtype), bias, *hw)
    return grouped_dynamic_conv(v, filters, bias, hw)

"""Depth-wise convolution of every map by filters of its own."""

from torch import Tensor

from ..kernel import chosen_kernel
from .per_map import dynamic_conv as per_map_dynamic_conv
from .reference import dynamic_conv as grouped_dynamic_conv


def dynamic_conv(x: Tensor, filters: Tensor, hw: tuple[int, int], bias: Tensor | None = None,
                 kernel: str | None = None) -> Tensor:
    """InLine's local branch (arXiv 2412.06590): each map convolved by filters that it has made.

    Args:
        x: tokens of the maps ``(B, H·W, C)``, any strides.
        filters: ``(B, C, k, k)``, k odd; zeros are padded around the map.
        hw: height and width ``(H, W)``.
        bias: ``(C,)``.
        kernel: 'torch', or 'reference' for one grouped convolution.

    Returns:
        ``(B, H·W, C)``.

    Raises:
        ValueError: if the shapes do not go together.
    """
    if x.shape[1] != hw[0] * hw[1] or filters.shape[:2] != (x.shape[0], x.shape[2]):
        raise ValueError('x must be (B, H·W, C) and filters (B, C, k, k), got '
                         f'{tuple(x.shape)}, {tuple(filters.shape)} and (H, W) = {tuple(hw)}')
    convolve = (grouped_dynamic_conv if chosen_kernel(kernel) == 'reference' else
                per_map_dynamic_conv)
    return convolve(x, filters, hw, bias)

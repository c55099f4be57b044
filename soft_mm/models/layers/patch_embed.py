"""Patch embeddings: downsample an image or a feature map."""

import torch.nn.functional as F
from torch import Tensor, nn

from ...ops.shapes import ceil_div
from .maps import channels_last
from .norm import LayerNorm2d
from .plain import apply_linear


class ConvPatchEmbed(nn.Sequential):
    """Overlapping patch embedding: 3×3 convolutions, each followed by batch norm and ReLU.

    ``(B, in_channels, H, W)`` -> ``(B, channels[-1], ⌈H/s⌉, ⌈W/s⌉)``, where s is the product of
    ``strides``.

    Args:
        in_channels (int): input channels.
        channels (Sequence[int]): output channels of each convolution.
        strides (Sequence[int]): stride of each convolution.
    """

    def __init__(self, in_channels: int, channels: list[int], strides: list[int]) -> None:
        layers = []
        for out_channels, stride in zip(channels, strides, strict=True):
            layers += [
                nn.Conv2d(in_channels, out_channels, 3, stride, padding=1),
                nn.BatchNorm2d(out_channels),
                nn.ReLU(inplace=True),
            ]
            in_channels = out_channels
        super().__init__(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(channels_last(x))


class PatchEmbed(nn.Module):
    """Patch embedding with one convolution, followed by layer norm unless ``norm`` is False.

    ``(B, in_channels, H, W)`` -> ``(B, channels, ⌈H/s⌉, ⌈W/s⌉)``, where s is the stride. The right
    and bottom are zero-padded to a multiple of the stride.

    Args:
        in_channels (int): input channels.
        channels (int): output channels.
        kernel_size (int): kernel size of the convolution.
        stride (int): stride of the convolution.
        norm (bool): add the layer norm.
    """

    def __init__(
        self, in_channels: int, channels: int, kernel_size: int, stride: int, norm: bool = True
    ) -> None:
        super().__init__()
        self.stride = stride
        padding = (kernel_size - stride + 1) // 2
        self.proj = nn.Conv2d(in_channels, channels, kernel_size, stride, padding)
        self.norm = LayerNorm2d(channels) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(channels_last(_pad_to_multiple(x, self.stride))))


class PatchMerging(nn.Module):
    """Merge every 2×2 tokens into one with a layer norm and a linear layer.

    Swin Transformer (arXiv 2103.14030). ``(B, in_channels, H, W)`` -> ``(B, channels, ⌈H/2⌉,
    ⌈W/2⌉)``. Odd feature maps are zero-padded at the right and bottom.

    Args:
        in_channels (int): input channels.
        channels (int): output channels.
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * in_channels)
        self.reduction = nn.Linear(4 * in_channels, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = _pad_to_multiple(x, 2).unflatten(3, (-1, 2)).unflatten(2, (-1, 2))
        # Swin's channel order: rows (0, 0), (1, 0), (0, 1), (1, 1) of each patch.
        tokens = x.permute(0, 2, 4, 5, 3, 1).flatten(3)
        return apply_linear(self.reduction, self.norm(tokens)).movedim(-1, 1)


def _pad_to_multiple(x: Tensor, size: int) -> Tensor:
    height, width = (ceil_div(side, size) * size - side for side in x.shape[-2:])
    return F.pad(x, (0, width, 0, height))

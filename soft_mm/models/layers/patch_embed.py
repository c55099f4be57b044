from torch import nn


class ConvPatchEmbed(nn.Sequential):
    """Overlapping patch embedding: 3×3 convolutions, each with batch norm and ReLU.

    ``(B, in_channels, H, W)`` -> ``(B, channels[-1], ⌈H/s⌉, ⌈W/s⌉)``, s the product of strides.

    Args:
        in_channels (int): channels of the input.
        channels (Sequence[int]): channels after each convolution.
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

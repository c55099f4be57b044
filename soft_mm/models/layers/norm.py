from torch import Tensor, nn


class LayerNorm2d(nn.LayerNorm):
    """Layer norm of the channels of a map ``(B, C, H, W)``, at each place by itself."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)

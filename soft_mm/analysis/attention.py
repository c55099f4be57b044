"""What the tokens of an image attend to: a backbone's attention layers with their inputs."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ..models.backbones import Backbone


@dataclass
class AttentionCall:
    """An attention layer and the arguments that it had in a forward pass.

    Attributes:
        stage (int): index of its stage in the backbone.
        block (int): index of its block in the stage.
        stride (int): height and width of a token in pixels.
        layer (nn.Module): the layer. Its method ``rows`` returns attention weights, and
            ``filters_of``, if it has one, the filters of the convolution that it adds.
        x (Tensor): tokens ``(B, T + N, C)``, T extra tokens, such as a class token, followed by the
            ``N = H·W`` tokens of the feature map.
        hw (tuple[int, int]): height and width ``(H, W)`` of the feature map.
        kwargs (dict[str, Tensor]): further arguments.
    """

    stage: int
    block: int
    stride: int
    layer: nn.Module
    x: Tensor
    hw: tuple[int, int]
    kwargs: dict[str, Tensor]

    @property
    def num_extra(self) -> int:
        """Number T of extra tokens."""
        return self.x.shape[1] - self.hw[0] * self.hw[1]

    def rows(self, queries: Tensor) -> Tensor:
        """Attention weights ``(B, h, M, T + N)`` of the tokens ``queries``, indices ``(M,)``."""
        return self.layer.rows(self.x, self.hw, queries, **self.kwargs)

    def filters(self, queries: Tensor) -> Tensor | None:
        """Filters ``(B, M, h, c, k, k)`` that the layer convolves the values of each head with.

        c is 1 if the channels of a head share a filter. None if the layer has no convolution.
        """
        if not hasattr(self.layer, 'filters_of'):
            return None
        return self.layer.filters_of(self.x, self.hw, queries, **self.kwargs)


def record_attention(backbone: Backbone, images: Tensor) -> list[AttentionCall]:
    """Run a backbone on images ``(B, C, H, W)`` and record its attention layers, in their order."""
    calls = []

    def record(stage: int, block: int, layer: nn.Module, args: tuple, kwargs: dict) -> None:
        calls.append(AttentionCall(stage, block, backbone.strides[stage], layer, *args, kwargs))

    handles = [
        block.attn.register_forward_pre_hook(partial(record, i, j), with_kwargs=True)
        for i, stage in enumerate(backbone.stages)
        for j, block in enumerate(stage.blocks)
    ]
    try:
        with torch.no_grad():
            backbone(images)
    finally:
        for handle in handles:
            handle.remove()
    return calls

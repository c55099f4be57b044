"""InLine-CSwin (arXiv 2412.06590): injective linear, then cross-shaped softmax attention."""

from torch import Tensor

from ...registry import MODELS
from ..layers import (
    CrossShapedAttention,
    InLineAttention,
    LayerNorm2d,
    PatchEmbed,
    TransformerBlock,
)
from .base import Backbone, Stage


class InLineCSwinBlock(TransformerBlock):
    """Pre-norm block that predicts the dynamic convolution's filters from un-normalised tokens."""

    def forward(self, x: Tensor, hw: tuple[int, int]) -> Tensor:
        """``(B, N, C)`` and the feature map's size ``(H, W)`` -> ``(B, N, C)``."""
        x = x + self.drop_path(self.attn(self.norm1(x), hw, described=x))
        return x + self.drop_path(self.mlp(self.norm2(x)))


@MODELS.register_module()
class InLineCSwin(Backbone):
    """CSwin transformer with injective linear attention in its first two stages.

    `InLine <https://arxiv.org/abs/2412.06590>`_ applied to
    `CSwin <https://arxiv.org/abs/2107.00652>`_. Stage 3 uses softmax attention in stripes, stage 4
    softmax attention over the full feature map. Each returned feature map has its own layer norm;
    classification checkpoints contain only the last one.

    Args:
        arch (str | dict): 'tiny', 'small' or 'base', or a dict with the keys 'channels',
            'num_heads' and 'depths', with one value per stage.
        stripe_size (int): width of the stripes of stage 3, in tokens.
        inline_window_size (int, optional): window size of injective linear attention, in tokens;
            None attends over the full feature map, as the released models do.
        **kwargs: shared arguments, see :class:`Backbone`.
    """

    arch_zoo = {
        'tiny': dict(channels=(64, 128, 256, 512), num_heads=(2, 4, 8, 16), depths=(2, 4, 18, 1)),
        'small': dict(channels=(64, 128, 256, 512), num_heads=(2, 4, 8, 16), depths=(3, 6, 29, 2)),
        'base': dict(channels=(96, 192, 384, 768), num_heads=(4, 8, 16, 32), depths=(3, 6, 29, 2)),
    }

    def __init__(
        self,
        arch: str | dict = 'tiny',
        stripe_size: int = 7,
        inline_window_size: int | None = None,
        **kwargs,
    ) -> None:
        super().__init__(arch, **kwargs)
        channels, num_heads = self.arch['channels'], self.arch['num_heads']
        for i, (dims, drops) in enumerate(zip(channels, self._drop_rates())):
            patch_embed = (
                PatchEmbed(channels[i - 1], dims, 3, 2)
                if i
                else PatchEmbed(self.in_channels, dims, 7, 4)
            )
            if i < 2:
                blocks = [
                    InLineCSwinBlock(
                        InLineAttention(dims, num_heads[i], inline_window_size, lepe=True),
                        dims,
                        drop_path=drop,
                        eps=1e-5,
                    )
                    for drop in drops
                ]
            else:
                blocks = [
                    TransformerBlock(
                        CrossShapedAttention(dims, num_heads[i], stripe_size if i == 2 else None),
                        dims,
                        drop_path=drop,
                        eps=1e-5,
                    )
                    for drop in drops
                ]
            norm = LayerNorm2d(dims) if i in self.out_indices else None
            self.stages.append(Stage(patch_embed, blocks, norm=norm, with_cp=self.with_cp))
        self._initialise()

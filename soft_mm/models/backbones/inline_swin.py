"""InLine-Swin: shifted windows, of injective linear attention first and of softmax last."""

from ...registry import MODELS
from ..layers import (
    InLineAttention,
    LayerNorm2d,
    PatchEmbed,
    PatchMerging,
    TransformerBlock,
    WindowAttention,
)
from .base import Backbone, Stage


@MODELS.register_module()
class InLineSwin(Backbone):
    """Swin transformer with injective linear attention in large windows.

    `InLine <https://arxiv.org/abs/2412.06590>`_ in `Swin <https://arxiv.org/abs/2103.14030>`_. The
    first blocks of a stage are InLine's, in large windows without mask or bias for positions; the
    others are Swin's. Every second block moves its windows by half their size. Each returned map
    has a layer norm of its own, of which a classifier's checkpoint holds the last.

    Args:
        arch (str | dict): 'tiny', 'small' or 'base', or a dict with the keys 'channels',
            'num_heads', 'depths' and 'inline_depths' (InLine blocks among them) of the four stages.
        window_size (int): side, in tokens, of the windows of softmax attention, at most that of the
            map that an image of ``img_size`` gives.
        inline_window_size (int, optional): side of the windows of injective linear attention;
            None for the whole map.
        **kwargs: what all backbones share, see :class:`Backbone`.
    """

    arch_zoo = {
        'tiny': dict(
            channels=(96, 192, 384, 768),
            num_heads=(3, 6, 12, 24),
            depths=(2, 2, 6, 2),
            inline_depths=(2, 2, 6, 0),
        ),
        'small': dict(
            channels=(96, 192, 384, 768),
            num_heads=(3, 6, 12, 24),
            depths=(2, 2, 18, 2),
            inline_depths=(2, 2, 0, 0),
        ),
        'base': dict(
            channels=(128, 256, 512, 1024),
            num_heads=(4, 8, 16, 32),
            depths=(2, 2, 18, 2),
            inline_depths=(2, 2, 2, 0),
        ),
    }

    def __init__(
        self,
        arch: str | dict = 'tiny',
        window_size: int = 7,
        inline_window_size: int | None = 56,
        **kwargs,
    ) -> None:
        super().__init__(arch, **kwargs)
        channels, num_heads, inline_depths = (
            self.arch[key] for key in ('channels', 'num_heads', 'inline_depths')
        )
        for i, (dims, drops) in enumerate(zip(channels, self._drop_rates())):
            patch_embed = (
                PatchMerging(channels[i - 1], dims)
                if i
                else PatchEmbed(self.in_channels, dims, 4, 4)
            )
            softmax_window_size = min(window_size, max(self._map_size(i)))
            blocks = []
            for j, drop in enumerate(drops):
                shifted = j % 2 == 1
                attn = (
                    InLineAttention(dims, num_heads[i], inline_window_size, shifted)
                    if j < inline_depths[i]
                    else WindowAttention(dims, num_heads[i], softmax_window_size, shifted)
                )
                blocks.append(TransformerBlock(attn, dims, drop_path=drop, eps=1e-5))
            norm = LayerNorm2d(dims) if i in self.out_indices else None
            self.stages.append(Stage(patch_embed, blocks, norm=norm, with_cp=self.with_cp))
        self._initialise()

"""InLine-Swin (arXiv 2412.06590): injective linear attention, then shifted windows of softmax."""

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
    """Swin transformer with injective linear attention over the full feature map.

    `InLine <https://arxiv.org/abs/2412.06590>`_ applied to
    `Swin <https://arxiv.org/abs/2103.14030>`_. The first blocks of each stage use injective linear
    attention, without attention mask or relative position bias; the remaining ones use Swin's
    softmax attention in windows, which every second block shifts by half their size. Each returned
    feature map has its own layer norm; classification checkpoints contain only the
    last one.

    Args:
        arch (str | dict): 'tiny', 'small' or 'base', or a dict with the keys 'channels',
            'num_heads', 'depths' and 'inline_depths' (how many of the blocks, from the first, use
            injective linear attention), with one value per stage.
        window_size (int): window size of softmax attention, in tokens; limited to the longer side
            of the stage's feature map at ``img_size``.
        inline_window_size (int, optional): window size of injective linear attention, in tokens;
            None attends over the full feature map. The paper's windows of 56 tokens at 224×224, and
            of 96 at 384×384, also cover the full map of the first stage, and its detectors attend
            over full maps. Smaller windows cost time and memory, because maps are padded to a
            multiple of them.
        kernel_function (str): φ of injective linear attention, which is applied to queries and keys:
            'identity', 'relu', 'leaky_relu' or 'affine_relu', ReLU(A·+b) with learned A and b.
        normalization (str): of the attention weights, 'subtraction', or 'division' by their sum as in
            linear attention.
        dynamic_conv (bool): add the dynamic convolution to injective linear attention. Other values
            of this argument, ``kernel_function`` and ``normalization`` than the defaults are for
            ablations: there are no checkpoints and no fused kernels for them.
        **kwargs: shared arguments, see :class:`Backbone`.
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
        inline_window_size: int | None = None,
        kernel_function: str = 'identity',
        normalization: str = 'subtraction',
        dynamic_conv: bool = True,
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
                    InLineAttention(
                        dims,
                        num_heads[i],
                        inline_window_size,
                        shifted,
                        kernel_function=kernel_function,
                        normalization=normalization,
                        dynamic_conv=dynamic_conv,
                    )
                    if j < inline_depths[i]
                    else WindowAttention(dims, num_heads[i], softmax_window_size, shifted)
                )
                blocks.append(TransformerBlock(attn, dims, drop_path=drop, eps=1e-5))
            norm = LayerNorm2d(dims) if i in self.out_indices else None
            self.stages.append(Stage(patch_embed, blocks, norm=norm, with_cp=self.with_cp))
        self._initialise()

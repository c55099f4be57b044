"""InLine-PVT (arXiv 2412.06590): pyramid vision transformer with injective linear attention."""

from ...registry import MODELS
from ..layers import InLineAttention, PatchEmbed, PositionEmbed, TransformerBlock
from .base import Backbone, Stage


@MODELS.register_module()
class InLinePVT(Backbone):
    """Pyramid vision transformer with injective linear attention in every block.

    `InLine <https://arxiv.org/abs/2412.06590>`_ applied to
    `PVT <https://arxiv.org/abs/2102.12122>`_, without its spatial reduction of keys and values.

    Args:
        arch (str | dict): 'tiny', 'small', 'medium' or 'large', or a dict with the keys
            'channels', 'num_heads', 'depths' and 'mlp_ratios', with one value per stage.
        inline_window_size (int, optional): window size of the attention, in tokens; None attends
            over the full feature map, as the released models do.
        kernel_function (str), normalization (str), dynamic_conv (bool): for ablations, see
            :class:`InLineSwin`.
        **kwargs: shared arguments, see :class:`Backbone`.
    """

    _pyramid = dict(channels=(64, 128, 320, 512), num_heads=(2, 4, 10, 16), mlp_ratios=(8, 8, 4, 4))
    arch_zoo = {
        'tiny': dict(_pyramid, depths=(2, 2, 2, 2)),
        'small': dict(_pyramid, depths=(3, 4, 6, 3)),
        'medium': dict(_pyramid, depths=(3, 4, 18, 3)),
        'large': dict(_pyramid, depths=(3, 8, 27, 3)),
    }

    def __init__(
        self,
        arch: str | dict = 'tiny',
        inline_window_size: int | None = None,
        kernel_function: str = 'identity',
        normalization: str = 'subtraction',
        dynamic_conv: bool = True,
        **kwargs,
    ) -> None:
        super().__init__(arch, **kwargs)
        in_channels = self.in_channels
        for i, (dims, drops) in enumerate(zip(self.arch['channels'], self._drop_rates())):
            patch_size = 2 if i else 4
            patch_embed = PatchEmbed(in_channels, dims, patch_size, patch_size)
            blocks = [
                TransformerBlock(
                    InLineAttention(
                        dims,
                        self.arch['num_heads'][i],
                        inline_window_size,
                        kernel_function=kernel_function,
                        normalization=normalization,
                        dynamic_conv=dynamic_conv,
                    ),
                    dims,
                    self.arch['mlp_ratios'][i],
                    drop,
                )
                for drop in drops
            ]
            pos_embed = PositionEmbed(dims, self._map_size(i))
            self.stages.append(Stage(patch_embed, blocks, pos_embed, with_cp=self.with_cp))
            in_channels = dims
        self._initialise()

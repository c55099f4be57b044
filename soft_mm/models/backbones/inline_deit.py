"""InLine-DeiT (arXiv 2412.06590): plain vision transformer, optionally with a feature pyramid."""

from torch import Tensor, nn

from ...ops.shapes import ceil_div
from ...registry import MODELS
from ..layers import InLineAttention, LayerNorm2d, PatchEmbed, PositionEmbed, TransformerBlock
from .base import Backbone, ClassTokenStage

PYRAMID_STRIDES = (4, 8, 16, 32)


@MODELS.register_module()
class InLineDeiT(Backbone):
    """Plain vision transformer with injective linear attention in every block.

    `InLine <https://arxiv.org/abs/2412.06590>`_ applied to
    `DeiT <https://arxiv.org/abs/2012.12877>`_. Its only stage has a class token and returns one
    feature map at stride 16.

    Args:
        arch (str | dict): 'tiny', 'small' or 'base', or a dict with the keys 'channels',
            'num_heads' and 'depths', each a sequence of one value.
        pyramid (bool): return feature maps at strides 4, 8, 16 and 32, computed from the one at
            stride 16 like the simple feature pyramid of
            `ViTDet <https://arxiv.org/abs/2203.16527>`_. ``out_indices`` then select from these
            four maps.
        **kwargs: shared arguments, see :class:`Backbone`.
    """

    out_types = ('featmap', 'avg_featmap', 'cls_token')
    strides = (16,)
    arch_zoo = {
        'tiny': dict(channels=(192,), num_heads=(6,), depths=(12,)),
        'small': dict(channels=(320,), num_heads=(10,), depths=(12,)),
        'base': dict(channels=(384,), num_heads=(12,), depths=(12,)),
    }

    def __init__(self, arch: str | dict = 'tiny', pyramid: bool = False, **kwargs) -> None:
        self.with_pyramid = pyramid  # the base class validates out_indices with it
        super().__init__(arch, **kwargs)
        if pyramid and self.out_type != 'featmap':
            raise ValueError(f"pyramid needs out_type 'featmap', got {self.out_type!r}")
        (dims,), (num_heads,), (drops,) = (
            self.arch['channels'],
            self.arch['num_heads'],
            self._drop_rates(),
        )
        (patch_size,) = self.strides
        patch_embed = PatchEmbed(self.in_channels, dims, patch_size, patch_size, norm=False)
        blocks = [
            TransformerBlock(InLineAttention(dims, num_heads), dims, drop_path=drop)
            for drop in drops
        ]
        pos_embed = PositionEmbed(dims, self._map_size(0))
        self.stages.append(
            ClassTokenStage(
                dims, patch_embed, blocks, pos_embed, LayerNorm2d(dims, eps=1e-6), self.with_cp
            )
        )
        if pyramid:
            scales = (
                nn.Sequential(
                    nn.ConvTranspose2d(dims, dims // 2, 2, 2),
                    LayerNorm2d(dims // 2),
                    nn.GELU(),
                    nn.ConvTranspose2d(dims // 2, dims // 4, 2, 2),
                ),
                nn.ConvTranspose2d(dims, dims // 2, 2, 2),
                nn.Identity(),
                nn.Sequential(nn.ReplicationPad2d((0, 1, 0, 1)), nn.MaxPool2d(2)),  # round up
            )
            self.pyramid = nn.ModuleDict({str(i): scales[i] for i in self.out_indices})
        self._initialise()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        if not self.with_pyramid:
            return super().forward(x)
        self._check_images(x)
        (stage,) = self.stages
        middle = stage.norm(stage(x)[0])
        outs = []
        for i, stride in zip(self.out_indices, self.out_strides):
            height, width = (ceil_div(side, stride) for side in x.shape[-2:])
            outs.append(self.pyramid[str(i)](middle)[..., :height, :width].contiguous())
        return tuple(outs)

    def _map_channels(self) -> tuple[int, ...]:
        (dims,) = self.arch['channels']
        return (dims // 4, dims // 2, dims, dims) if self.with_pyramid else (dims,)

    def _map_strides(self) -> tuple[int, ...]:
        return PYRAMID_STRIDES if self.with_pyramid else self.strides

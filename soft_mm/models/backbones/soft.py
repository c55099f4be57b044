"""SOFT and SOFT-Norm: block -> stage -> backbone."""

from torch import Tensor, nn

from ...registry import MODELS
from ..layers import (
    MLP,
    ConvPatchEmbed,
    LayerNorm2d,
    PositionEmbed,
    SelfAttention,
    SOFTAttention,
    TransformerBlock,
)
from .base import Backbone, ClassTokenStage, Stage

RATIOS = (8, 4, 2)  # of the landmark convolution, in stages 1-3


class SOFTBlock(nn.Module):
    """Post-norm block with softmax-free attention (stages 1-3).

    Args:
        attn (SOFTAttention): the attention.
        dims (int): channels of the tokens.
        drop (float): probability of the element-wise dropout that the authors' code has in the
            place of stochastic depth.
    """

    def __init__(self, attn: SOFTAttention, dims: int, drop: float) -> None:
        super().__init__()
        self.attn = attn
        self.norm1 = nn.LayerNorm(dims)
        self.mlp = MLP(dims, 4 * dims, approximate='tanh')
        self.norm2 = nn.LayerNorm(dims)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor, hw: tuple[int, int]) -> Tensor:
        """``(B, N, C)`` and the map's size ``(H, W)`` -> ``(B, N, C)``."""
        x = self.norm1(x + self.drop(self.attn(x, hw)))
        return self.norm2(x + self.drop(self.mlp(x)))


@MODELS.register_module()
class SOFT(Backbone):
    """SOFT: softmax-free transformer with linear complexity.

    `SOFT <https://arxiv.org/abs/2110.11945>`_ and, with ``sym_norm=True``, SOFT-Norm of
    `Softmax-free Linear Transformers <https://arxiv.org/abs/2207.03341>`_.

    Args:
        arch (str | dict): 'tiny', 'small', 'medium', 'large' or 'huge', or a dict with the keys
            'channels', 'num_heads' and 'depths' (of the four stages) and 'kernel_sizes' (of the
            values' depth-wise convolution in stages 1-3).
        sym_norm (bool): symmetric normalisation, which makes it SOFT-Norm.
        landmarks (str): 'conv' makes the landmarks by the papers' convolution, 'avg_pool' by
            averages, 'random' takes random tokens (the papers' ablation).
        num_landmarks (int, optional): at most so many a head, at any image size, which makes the
            attention linear in the number of pixels: 49 leaves 224×224 as it is. By default they
            grow with the image, as in the released code.
        solver (str): 'newton' computes what 20 of Newton's iterations give, as the papers do, by
            the fastest way; 'iteration' iterates; 'ridge' solves with K2 + 0.01·I exactly, for
            models that are trained so.
        alpha_scope (str): scale of the start of Newton's iteration, one a 'matrix', so that an
            image's output does not depend on its batch; or one a 'batch', as the released
            SOFT-Norm. They agree where the iteration has converged (at 224×224, not at 512×512).
        **kwargs: what all backbones share, see :class:`Backbone`.
    """

    out_types = ('featmap', 'avg_featmap', 'cls_token')
    arch_zoo = {
        'tiny': dict(
            channels=(64, 128, 320, 512),
            num_heads=(2, 4, 10, 16),
            depths=(1, 2, 3, 2),
            kernel_sizes=(9, 5, 3),
        ),
        'small': dict(
            channels=(64, 128, 320, 512),
            num_heads=(2, 4, 10, 16),
            depths=(1, 3, 7, 4),
            kernel_sizes=(9, 5, 3),
        ),
        'medium': dict(
            channels=(64, 128, 288, 512),
            num_heads=(2, 4, 9, 16),
            depths=(1, 3, 29, 5),
            kernel_sizes=(9, 5, 3),
        ),
        'large': dict(
            channels=(64, 128, 320, 512),
            num_heads=(2, 4, 10, 16),
            depths=(1, 3, 40, 5),
            kernel_sizes=(9, 5, 3),
        ),
        'huge': dict(
            channels=(64, 128, 352, 512),
            num_heads=(2, 4, 11, 16),
            depths=(1, 5, 49, 5),
            kernel_sizes=(9, 5, 3),
        ),
    }

    def __init__(
        self,
        arch: str | dict = 'tiny',
        sym_norm: bool = False,
        landmarks: str = 'conv',
        num_landmarks: int | None = None,
        solver: str = 'newton',
        alpha_scope: str = 'matrix',
        **kwargs,
    ) -> None:
        super().__init__(arch, **kwargs)
        channels, num_heads, kernel_sizes = (
            self.arch[key] for key in ('channels', 'num_heads', 'kernel_sizes')
        )
        for i, (dims, drops) in enumerate(zip(channels, self._drop_rates())):
            patch_embed = (
                ConvPatchEmbed(channels[i - 1], [dims], [2])
                if i
                else ConvPatchEmbed(self.in_channels, [32, 32, dims], [2, 1, 2])
            )
            pos_embed = PositionEmbed(dims, self._map_size(i))
            if i < 3:
                blocks = [
                    SOFTBlock(
                        SOFTAttention(
                            dims,
                            num_heads[i],
                            RATIOS[i],
                            kernel_sizes[i],
                            landmarks,
                            num_landmarks,
                            sym_norm,
                            solver,
                            alpha_scope,
                        ),
                        dims,
                        drop,
                    )
                    for drop in drops
                ]
                stage = Stage(patch_embed, blocks, pos_embed, with_cp=self.with_cp)
            else:
                blocks = [
                    TransformerBlock(SelfAttention(dims, num_heads[i]), dims, drop_path=drop)
                    for drop in drops
                ]
                stage = ClassTokenStage(
                    dims, patch_embed, blocks, pos_embed, LayerNorm2d(dims, eps=1e-6), self.with_cp
                )
            self.stages.append(stage)
        self._initialise()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        # Every map must have a landmark: at stride s, a side of r takes s·(r − 1) + 1 pixels.
        smallest = max(stride * (ratio - 1) + 1 for stride, ratio in zip(self.strides, RATIOS))
        if any(side < smallest for side in x.shape[-2:]):
            raise ValueError(
                f'SOFT takes images of at least {smallest}×{smallest} pixels, one '
                f'landmark, got {x.shape[-2]}×{x.shape[-1]}'
            )
        return super().forward(x)

"""SOFT and SOFT-Norm (arXiv 2110.11945, 2207.03341)."""

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

RATIOS = (8, 4, 2)  # downsampling from tokens to landmarks in stages 1-3


class SOFTBlock(nn.Module):
    """Post-norm block with softmax-free attention (stages 1-3).

    Args:
        attn (SOFTAttention): attention layer.
        dims (int): embed dims of the tokens.
        drop (float): rate of the element-wise dropout that the authors' code uses in place of
            stochastic depth.
    """

    def __init__(self, attn: SOFTAttention, dims: int, drop: float) -> None:
        super().__init__()
        self.attn = attn
        self.norm1 = nn.LayerNorm(dims)
        self.mlp = MLP(dims, 4 * dims, approximate='tanh')
        self.norm2 = nn.LayerNorm(dims)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor, hw: tuple[int, int]) -> Tensor:
        """``(B, N, C)`` and the feature map's size ``(H, W)`` -> ``(B, N, C)``."""
        x = self.norm1(x + self.drop(self.attn(x, hw)))
        return self.norm2(x + self.drop(self.mlp(x)))


@MODELS.register_module()
class SOFT(Backbone):
    """Softmax-free transformer with linear complexity.

    `SOFT <https://arxiv.org/abs/2110.11945>`_ and, with ``sym_norm=True``, SOFT-Norm from
    `Softmax-free Linear Transformers <https://arxiv.org/abs/2207.03341>`_. Stages 1-3 use
    softmax-free attention, stage 4 softmax attention with a class token.

    Args:
        arch (str | dict): 'tiny', 'small', 'medium', 'large' or 'huge', or a dict with the keys
            'channels', 'num_heads' and 'depths' (one value per stage) and 'kernel_sizes' (of the
            values' depth-wise convolution in stages 1-3).
        sym_norm (bool): normalise the attention symmetrically, which is SOFT-Norm.
        landmarks (str): 'conv' computes landmarks with the papers' strided convolution; 'avg_pool'
            and 'random', the papers' ablations, use average pooling or randomly drawn tokens.
        num_landmarks (int, optional): maximum number of landmarks per head, which makes attention
            linear in the number of pixels; 49 leaves 224×224 images unchanged. By default the
            number grows with the image, as in the released code.
        solver (str): 'newton' computes the result of 20 Newton iterations, as in the papers, with
            the fastest method; 'iteration' runs the iterations; 'ridge' solves with K2 + 0.01·I
            exactly, which changes what the model computes: use it only with weights trained or
            fine-tuned that way.
        alpha_scope (str): scope of the scale that Newton's iteration starts from. 'matrix' computes
            one per matrix, so that an image's output does not depend on the rest of the batch;
            'batch' computes one per batch, as the released SOFT-Norm does. Both agree where the
            iteration has converged (at 224×224, not at 512×512).
        **kwargs: shared arguments, see :class:`Backbone`.
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

    def _check_images(self, x: Tensor) -> None:
        super()._check_images(x)
        # Each stage needs a landmark, so a feature map of at least r×r tokens for its ratio r. At
        # stride s that takes s·(r − 1) + 1 pixels per side, because strides round up.
        smallest = max(stride * (ratio - 1) + 1 for stride, ratio in zip(self.strides, RATIOS))
        if any(side < smallest for side in x.shape[-2:]):
            raise ValueError(
                f'SOFT needs images of at least {smallest}×{smallest} pixels, for one '
                f'landmark per stage, got {x.shape[-2]}×{x.shape[-1]}'
            )

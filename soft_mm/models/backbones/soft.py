"""SOFT and SOFT-Norm (arXiv 2110.11945, 2207.03341)."""

from collections.abc import Callable, Sequence
from inspect import signature

from torch import Tensor, nn

from ...registry import MODELS
from ..layers import (
    MLP,
    ConvPatchEmbed,
    LayerNorm2d,
    LinformerAttention,
    NystromformerAttention,
    PerformerAttention,
    PositionEmbed,
    SelfAttention,
    SOFTAttention,
    TransformerBlock,
)
from .base import Backbone, ClassTokenStage, Stage

ATTENTIONS = {  # of stages 1-3; all but SOFT's own are those that its paper compares it with
    'gaussian': SOFTAttention,
    'softmax': SelfAttention,
    'linformer': LinformerAttention,
    'performer': PerformerAttention,
    'nystromformer': NystromformerAttention,
}
RATIOS = (8, 4, 2)  # downsampling from tokens to landmarks in stages 1-3


class SOFTBlock(nn.Module):
    """Post-norm block, by default with softmax-free attention (stages 1-3).

    Args:
        attn (nn.Module): attention layer.
        dims (int): embed dims of the tokens.
        drop (float): rate of the element-wise dropout that the authors' code uses in place of
            stochastic depth.
    """

    def __init__(self, attn: nn.Module, dims: int, drop: float) -> None:
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
        landmarks (str): 'conv' computes landmarks with the papers' strided convolution; the papers'
            ablations use average pooling, 'avg_pool', randomly drawn tokens, 'random', or the first
            tokens, 'biased'.
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
        attention (str): attention of stages 1-3. 'gaussian' is SOFT's; 'softmax', 'linformer',
            'performer' and 'nystromformer' are those that it is compared with (arXiv 2110.11945,
            Table 2). Of the arguments above and below, 'linformer' and 'nystromformer' take
            ``num_landmarks`` and ``ratios``, the others none.
        ratios (Sequence[int]): downsampling ratios from the feature map to the grid of landmarks in
            stages 1-3.
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
        attention: str = 'gaussian',
        ratios: Sequence[int] = RATIOS,
        **kwargs,
    ) -> None:
        super().__init__(arch, **kwargs)
        options = dict(
            landmarks=landmarks,
            num_landmarks=num_landmarks,
            sym_norm=sym_norm,
            solver=solver,
            alpha_scope=alpha_scope,
        )
        _check_options(attention, ratios, options)
        layer = ATTENTIONS[attention]
        takes = _parameters(layer)
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
                options.update(ratio=ratios[i], kernel_size=kernel_sizes[i])
                taken = {name: options[name] for name in options.keys() & takes}
                blocks = [
                    SOFTBlock(layer(dims, num_heads[i], **taken), dims, drop) for drop in drops
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
        # Each stage needs a landmark, so a feature map of at least r×r tokens for its ratio r. At
        # stride s that takes s·(r − 1) + 1 pixels per side, because strides round up.
        self._smallest = 1
        if 'ratio' in takes:
            self._smallest = max(s * (r - 1) + 1 for s, r in zip(self.strides, ratios))
        self._initialise()

    def _check_images(self, x: Tensor) -> None:
        super()._check_images(x)
        if any(side < self._smallest for side in x.shape[-2:]):
            raise ValueError(
                f'SOFT needs images of at least {self._smallest}×{self._smallest} pixels, for one '
                f'landmark per stage, got {x.shape[-2]}×{x.shape[-1]}'
            )


def _parameters(function: Callable) -> set[str]:
    return set(signature(function).parameters)


def _check_options(attention: str, ratios: Sequence[int], options: dict) -> None:
    """Check the attention and the ratios, and that options which do not apply have their defaults.

    Raises:
        ValueError: if not; names the option.
    """
    if attention not in list(ATTENTIONS):
        raise ValueError(f'attention must be one of {list(ATTENTIONS)}, got {attention!r}')
    if (
        not isinstance(ratios, Sequence)
        or len(ratios) != 3
        or not all(isinstance(ratio, int) and ratio >= 1 for ratio in ratios)
    ):
        raise ValueError(f'ratios must be three integers >= 1, got {ratios!r}')
    takes = _parameters(ATTENTIONS[attention])
    if 'ratio' not in takes:
        options = dict(options, ratios=tuple(ratios))
    for name in options.keys() - takes:
        if options[name] != signature(SOFT).parameters[name].default:
            raise ValueError(f'{name}={options[name]!r} does not apply to attention={attention!r}')

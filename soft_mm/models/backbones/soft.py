"""SOFT and SOFT-Norm: block -> stage -> backbone."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...registry import MODELS
from ..layers import MLP, ConvPatchEmbed, PositionEmbed, SOFTAttention, TransformerBlock
from .base import Backbone

STRIDES = (4, 8, 16, 32)  # of each stage's map
RATIOS = (8, 4, 2)  # of the landmark convolution, in stages 1-3


class SOFTBlock(nn.Module):
    """Post-norm block with softmax-free attention (stages 1-3).

    Args:
        dims (int): channels of the tokens.
        num_heads, ratio, kernel_size, sym_norm, alpha_scope: see :class:`SOFTAttention`.
        drop (float): probability of the element-wise dropout that the authors' code has in the
            place of stochastic depth.
    """

    def __init__(self, dims: int, num_heads: int, ratio: int, kernel_size: int, sym_norm: bool,
                 alpha_scope: str, drop: float) -> None:
        super().__init__()
        self.attn = SOFTAttention(dims, num_heads, ratio, kernel_size, sym_norm, alpha_scope)
        self.norm1 = nn.LayerNorm(dims)
        self.mlp = MLP(dims, 4 * dims, approximate='tanh')
        self.norm2 = nn.LayerNorm(dims)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor, hw: tuple[int, int]) -> Tensor:
        """``(B, N, C)`` and the map's size ``(H, W)`` -> ``(B, N, C)``."""
        x = self.norm1(x + self.drop(self.attn(x, hw)))
        return self.norm2(x + self.drop(self.mlp(x)))


class SOFTStage(nn.Module):
    """Patch embedding, position table and softmax-free blocks (stages 1-3).

    Args:
        patch_embed (nn.Module): image or map to a smaller map.
        pos_embed (nn.Module): adds positions to the map.
        blocks (Sequence[nn.Module]): called with the tokens and the map's size.
        with_cp (bool): recompute each block in the backward pass instead of keeping its
            activations.
    """

    def __init__(self, patch_embed: nn.Module, pos_embed: nn.Module, blocks: Sequence[nn.Module],
                 with_cp: bool) -> None:
        super().__init__()
        self.patch_embed = patch_embed
        self.pos_embed = pos_embed
        self.blocks = nn.ModuleList(blocks)
        self.with_cp = with_cp

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """``(B, C_in, H_in, W_in)`` -> the map ``(B, C, H, W)``; no class token here."""
        x = self.pos_embed(self.patch_embed(x))
        hw = x.shape[-2:]
        return self._run_blocks(x.flatten(2).mT, hw).mT.unflatten(-1, hw), None

    def _run_blocks(self, x: Tensor, *args) -> Tensor:
        for block in self.blocks:
            if self.with_cp and torch.is_grad_enabled():
                x = checkpoint(block, x, *args, use_reentrant=False)
            else:
                x = block(x, *args)
        return x


class ClassTokenStage(SOFTStage):
    """The last stage: softmax blocks over a class token and the map's tokens, and a final norm."""

    def __init__(self, patch_embed: nn.Module, pos_embed: nn.Module, blocks: Sequence[nn.Module],
                 with_cp: bool, dims: int) -> None:
        super().__init__(patch_embed, pos_embed, blocks, with_cp)
        self.cls_token = nn.Parameter(torch.empty(1, 1, dims))
        self.cls_pos_embed = nn.Parameter(torch.empty(1, 1, dims))
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.cls_pos_embed, std=0.02)
        self.norm = nn.LayerNorm(dims, eps=1e-6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``(B, C_in, H_in, W_in)`` -> the map ``(B, C, H, W)`` and the class token ``(B, C)``."""
        x = self.pos_embed(self.patch_embed(x))
        hw = x.shape[-2:]
        cls_token = (self.cls_token + self.cls_pos_embed).expand(x.shape[0], -1, -1)
        x = self.norm(self._run_blocks(torch.cat((cls_token, x.flatten(2).mT), dim=1)))
        return x[:, 1:].mT.unflatten(-1, hw), x[:, 0]


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
        depths (Sequence[int], optional): number of blocks of each stage, in place of the arch's.
        img_size (int | tuple[int, int]): height and width of the images that the position tables
            are made for. Images of any size are taken: the tables are resized to them.
        in_channels (int): channels of the image.
        drop_path_rate (float): probability of dropping, rising linearly over all blocks from 0 to
            this value.
        out_indices (int | Sequence[int], optional): stages to return, 0 to 3 or counted from the
            end with negative numbers. By default all four for 'featmap' and the last otherwise.
        out_type (str): 'featmap' for maps, 'avg_featmap' for their averages, 'cls_token' for the
            class token, which the last stage alone has.
        frozen_stages (int): -1 freezes nothing, 0 the first patch embedding, n the first n stages:
            no gradient, and norm and dropout layers in eval mode.
        norm_eval (bool): keep the batch norms in eval mode, their running statistics fixed.
        with_cp (bool): recompute each block in the backward pass, for less memory.
        alpha_scope (str): scale of the start of Newton's iteration, one a 'matrix', so that an
            image's output does not depend on its batch; or one a 'batch', as the released
            SOFT-Norm. They agree where the iteration has converged (at 224×224, not at 512×512).
        init_cfg (dict, optional): MMEngine's initialisation, for instance
            ``dict(type='Pretrained', checkpoint=…, prefix='backbone.')``. Position tables of
            another size are resized.

    Attributes:
        out_channels (list[int]): channels of each returned map or vector.

    Raises:
        ValueError: for an argument that is not one of the above, with what is allowed.
    """

    arch_zoo = {
        'tiny': dict(channels=(64, 128, 320, 512), num_heads=(2, 4, 10, 16), depths=(1, 2, 3, 2),
                     kernel_sizes=(9, 5, 3)),
        'small': dict(channels=(64, 128, 320, 512), num_heads=(2, 4, 10, 16), depths=(1, 3, 7, 4),
                      kernel_sizes=(9, 5, 3)),
        'medium': dict(channels=(64, 128, 288, 512), num_heads=(2, 4, 9, 16),
                       depths=(1, 3, 29, 5), kernel_sizes=(9, 5, 3)),
        'large': dict(channels=(64, 128, 320, 512), num_heads=(2, 4, 10, 16),
                      depths=(1, 3, 40, 5), kernel_sizes=(9, 5, 3)),
        'huge': dict(channels=(64, 128, 352, 512), num_heads=(2, 4, 11, 16), depths=(1, 5, 49, 5),
                     kernel_sizes=(9, 5, 3)),
    }

    def __init__(self,
                 arch: str | dict = 'tiny',
                 sym_norm: bool = False,
                 depths: Sequence[int] | None = None,
                 img_size: int | tuple[int, int] = 224,
                 in_channels: int = 3,
                 drop_path_rate: float = 0.,
                 out_indices: int | Sequence[int] | None = None,
                 out_type: str = 'featmap',
                 frozen_stages: int = -1,
                 norm_eval: bool = False,
                 with_cp: bool = False,
                 alpha_scope: str = 'matrix',
                 init_cfg: dict | None = None) -> None:
        super().__init__(arch, depths, out_indices, out_type, frozen_stages, norm_eval, init_cfg)
        channels, num_heads, depths, kernel_sizes = (
            self.arch[key] for key in ('channels', 'num_heads', 'depths', 'kernel_sizes'))
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        drops = torch.linspace(0, drop_path_rate, sum(depths), device='cpu').split(depths)
        for i, dims in enumerate(channels):
            patch_embed = (ConvPatchEmbed(channels[i - 1], [dims], [2]) if i else
                           ConvPatchEmbed(in_channels, [32, 32, dims], [2, 1, 2]))
            pos_embed = PositionEmbed(dims, (-(-height // STRIDES[i]), -(-width // STRIDES[i])))
            if i < 3:
                blocks = [
                    SOFTBlock(dims, num_heads[i], RATIOS[i], kernel_sizes[i], sym_norm,
                              alpha_scope, drop) for drop in drops[i].tolist()
                ]
                self.stages.append(SOFTStage(patch_embed, pos_embed, blocks, with_cp))
            else:
                blocks = [
                    TransformerBlock(dims, num_heads[i], drop_path=drop)
                    for drop in drops[i].tolist()
                ]
                self.stages.append(ClassTokenStage(patch_embed, pos_embed, blocks, with_cp, dims))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        self._freeze()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        # Every map must have a landmark: at stride s, a side of r takes s·(r − 1) + 1 pixels.
        smallest = max(stride * (ratio - 1) + 1 for stride, ratio in zip(STRIDES, RATIOS))
        if min(x.shape[-2:]) < smallest:
            raise ValueError(f'SOFT takes images of at least {smallest}×{smallest} pixels, one '
                             f'landmark, got {x.shape[-2]}×{x.shape[-1]}')
        return super().forward(x)

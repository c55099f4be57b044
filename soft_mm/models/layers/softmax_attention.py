"""Softmax attention (arXiv 1706.03762) over all tokens, Swin's windows or CSwin's stripes."""

import torch
from torch import Tensor, nn

from ...ops import softmax_attention
from ...ops.shapes import split_qkv
from ...ops.sizes import smaller
from ...ops.softmax_attention.reference import attention_rows
from ...ops.windows import Windows
from .heads import check_heads
from .maps import as_map
from .plain import apply_linear, depthwise_filters
from .position_embed import RelativePositionBias


class SelfAttention(nn.Module):
    """Multi-head softmax attention over all tokens.

    Args:
        dims (int): embed dims of the tokens.
        num_heads (int): number of heads; must divide ``dims``.
    """

    def __init__(self, dims: int, num_heads: int) -> None:
        super().__init__()
        check_heads(dims, num_heads)
        self.num_heads = num_heads
        self.qkv = nn.Linear(dims, 3 * dims)
        self.proj = nn.Linear(dims, dims)

    def forward(self, x: Tensor, hw: tuple[int, int]) -> Tensor:
        """``(B, N, C)`` -> ``(B, N, C)``; ``hw`` is unused."""
        return apply_linear(self.proj, _attend(apply_linear(self.qkv, x), self.num_heads))

    def rows(self, x: Tensor, hw: tuple[int, int], queries: Tensor) -> Tensor:
        """Attention weights ``(B, h, M, N)`` of the tokens ``queries``, indices ``(M,)``."""
        return _rows(self.qkv(x), self.num_heads, queries)


class WindowAttention(nn.Module):
    """Softmax attention within windows, with a relative position bias.

    Swin Transformer (arXiv 2103.14030). Padding at the border of the feature map is masked.

    Args:
        dims (int): embed dims of the tokens.
        num_heads (int): number of heads; must divide ``dims``.
        window_size (int): window size, in tokens.
        shifted (bool): shift the windows by half their size.
    """

    def __init__(self, dims: int, num_heads: int, window_size: int, shifted: bool) -> None:
        super().__init__()
        check_heads(dims, num_heads)
        self.num_heads = num_heads
        self.window_size = window_size
        self.shifted = shifted
        self.qkv = nn.Linear(dims, 3 * dims)
        self.relative_position_bias = RelativePositionBias(num_heads, window_size)
        self.proj = nn.Linear(dims, dims)

    def forward(self, x: Tensor, hw: tuple[int, int]) -> Tensor:
        """``(B, N, C)`` and the feature map's size ``(H, W)``, ``H·W = N`` -> ``(B, N, C)``."""
        windows = Windows.fit(hw, self.window_size, self.shifted)
        mask = self.relative_position_bias(windows.size)[None]
        if windows.shifted:
            regions = windows.regions(x.device)
            across = regions[:, None, :, None] != regions[:, None, None, :]
            mask = mask - 100.0 * across.to(mask)  # the released models add −100 instead of −∞
        if windows.padded:
            mask = mask.masked_fill(~windows.real(x.device)[:, None, None, :], -torch.inf)
        if len(mask) > 1:
            mask = mask.repeat(len(x), 1, 1, 1)
        qkv = windows.split(apply_linear(self.qkv, x))
        return apply_linear(self.proj, windows.join(_attend(qkv, self.num_heads, mask)))

    def rows(self, x: Tensor, hw: tuple[int, int], queries: Tensor) -> Tensor:
        """Attention weights ``(B, h, M, N)`` of the tokens ``queries``, indices ``(M,)``.

        Weights are 0 outside of a query's window.
        """
        windows = Windows.fit(hw, self.window_size, self.shifted)
        window, place = windows.places(x.device)
        region = windows.regions(x.device)[window, place]
        bias = self.relative_position_bias(windows.size)[:, place[queries, None], place]
        bias = bias - 100.0 * (region[queries, None] != region).to(bias)
        return _rows(self.qkv(x), self.num_heads, queries, window, bias)


class CrossShapedAttention(nn.Module):
    """Softmax attention within cross-shaped windows.

    CSwin Transformer (arXiv 2107.00652). Two branches, each with half the channels and heads,
    attend within vertical stripes of full height and horizontal stripes of full width; without
    stripes, a single branch attends over the full feature map. Locally enhanced positional
    encoding, a 3×3 depth-wise convolution of the values, is added. Padding at the border of the
    feature map is masked.

    Args:
        dims (int): embed dims of the tokens.
        num_heads (int): number of heads; must divide ``dims`` and be a multiple of the number of
            branches.
        stripe_size (int, optional): width of the stripes, in tokens; None attends over the full
            feature map.
    """

    def __init__(self, dims: int, num_heads: int, stripe_size: int | None) -> None:
        super().__init__()
        branches = 1 if stripe_size is None else 2
        check_heads(dims, num_heads)
        if num_heads % branches:
            raise ValueError(
                f'num_heads must be a multiple of {branches}, the number of branches, '
                f'got {num_heads}'
            )
        self.num_heads = num_heads // branches
        self.stripe_size = stripe_size
        self.qkv = nn.Linear(dims, 3 * dims)
        self.lepe = nn.ModuleList(
            nn.Conv2d(dims // branches, dims // branches, 3, padding=1, groups=dims // branches)
            for _ in range(branches)
        )
        self.proj = nn.Linear(dims, dims)

    def forward(self, x: Tensor, hw: tuple[int, int]) -> Tensor:
        """``(B, N, C)`` and the feature map's size ``(H, W)``, ``H·W = N`` -> ``(B, N, C)``."""
        outs = [
            self._branch(qkv, windows, lepe)
            for (qkv, windows), lepe in zip(self._branches(x, hw), self.lepe)
        ]
        return apply_linear(self.proj, torch.cat(outs, dim=-1))

    def rows(self, x: Tensor, hw: tuple[int, int], queries: Tensor) -> Tensor:
        """Attention weights ``(B, h, M, N)`` of the tokens ``queries``, indices ``(M,)``.

        The heads of the vertical stripes come first. Weights are 0 outside of a query's stripe.
        """
        rows = [
            _rows(qkv, self.num_heads, queries, windows.places(x.device)[0])
            for qkv, windows in self._branches(x, hw)
        ]
        return torch.cat(rows, dim=1)

    def filters_of(self, x: Tensor, hw: tuple[int, int], queries: Tensor) -> Tensor:
        """Filters of the convolution, the same for all queries: ``(B, M, h, C / h, 3, 3)``."""
        channels = x.shape[-1] // len(self.lepe)
        filters = torch.cat([depthwise_filters(lepe, channels, 3, x) for lepe in self.lepe])
        filters = filters.unflatten(0, (self.num_heads * len(self.lepe), -1))
        return filters.expand(len(x), len(queries), -1, -1, -1, -1)

    def _branches(self, x: Tensor, hw: tuple[int, int]) -> list[tuple[Tensor, Windows]]:
        """Each branch's q, k and v, ``(B, N, 3·c)``, and its windows."""
        shapes = [hw]
        if self.stripe_size is not None:
            height, width = (smaller(side, self.stripe_size) for side in hw)
            shapes = [(hw[0], width), (height, hw[1])]
        branches = apply_linear(self.qkv, x).unflatten(-1, (3, len(shapes), -1)).unbind(3)
        return [(qkv.flatten(2), Windows(hw, shape)) for qkv, shape in zip(branches, shapes)]

    def _branch(self, qkv: Tensor, windows: Windows, lepe: nn.Module) -> Tensor:
        """Attention and positional encoding of one branch: ``(B, N, 3·c)`` -> ``(B, N, c)``."""
        mask = None
        if windows.padded:
            mask = windows.real(qkv.device)[:, None, None, :].repeat(len(qkv), 1, 1, 1)
        qkv = windows.split(qkv)
        maps = as_map(qkv.chunk(3, dim=-1)[2], windows.size)
        out = _attend(qkv, self.num_heads, mask) + lepe(maps).flatten(2).mT
        return windows.join(out)


def _attend(qkv: Tensor, num_heads: int, mask: Tensor | None = None) -> Tensor:
    """qkv ``(B, N, 3·C)`` and a mask that broadcasts to ``(B, h, N, N)`` -> ``(B, N, C)``."""
    return softmax_attention(*split_qkv(qkv, num_heads), mask).transpose(1, 2).flatten(2)


def _rows(
    qkv: Tensor,
    num_heads: int,
    queries: Tensor,
    window: Tensor | None = None,
    bias: Tensor | float = 0.0,
) -> Tensor:
    """Attention weights ``(B, h, M, N)`` of the tokens ``queries``.

    ``window`` ``(N,)`` is the window of each token, and ``bias`` is added to the scores.
    """
    q, k, _ = split_qkv(qkv, num_heads)
    attended = None if window is None else window[queries, None] == window
    return attention_rows(q[:, :, queries], k, bias, attended)

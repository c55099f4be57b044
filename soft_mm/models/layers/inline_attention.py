import torch.nn.functional as F
from torch import Tensor, nn

from ...ops import dynamic_conv, inline_self_attention, projected_attention
from .heads import check_heads
from .windows import Windows


class InLineAttention(nn.Module):
    """Injective linear attention and a dynamic convolution of its values.

    InLine (arXiv 2412.06590). Each map, or each window of it, makes the 3×3 filters that its values
    are convolved with, one a channel, from the mean of its tokens.

    Args:
        dims (int): channels of the tokens.
        num_heads (int): number of heads; divides ``dims``.
        window_size (int, optional): side of the windows that attend within themselves; None for
            the whole map.
        shifted (bool): move the windows by half their size.
        lepe (bool): add CSwin's locally enhanced positional encoding (arXiv 2107.00652), a 3×3
            depth-wise convolution of the values whose filters are learned.
    """

    def __init__(
        self,
        dims: int,
        num_heads: int,
        window_size: int | None = None,
        shifted: bool = False,
        lepe: bool = False,
    ) -> None:
        super().__init__()
        check_heads(dims, num_heads)
        if window_size is not None and window_size < 1:
            raise ValueError(f'window_size must be None or at least 1, got {window_size}')
        self.num_heads = num_heads
        self.window_size = window_size
        self.shifted = shifted
        self.qkv = nn.Linear(dims, 3 * dims)
        self.filters = nn.Sequential(
            nn.Conv1d(dims, dims, 1, groups=num_heads),
            nn.GELU(),
            nn.Conv1d(dims, 9 * dims, 1, groups=num_heads),
        )
        self.lepe = nn.Conv2d(dims, dims, 3, padding=1, groups=dims) if lepe else None
        self.proj = nn.Linear(dims, dims)

    def forward(self, x: Tensor, hw: tuple[int, int], described: Tensor | None = None) -> Tensor:
        """``(B, T + N, C)`` and the map's size ``(H, W)``, ``H·W = N`` -> ``(B, T + N, C)``.

        Args:
            x: the tokens of the map after T others, such as a class token, which attend and are
                attended to but are not convolved. Windows need T = 0.
            hw: height and width of the map.
            described: tokens of the shape of x, by default x, whose mean makes the filters.
        """
        described = x if described is None else described
        if self.window_size is None:
            out, v = inline_self_attention(x, self.qkv.weight, self.qkv.bias, self.num_heads)
            return self.proj(self._add_convolution(out, v, described.mean(1), hw))
        windows = Windows.fit(hw, self.window_size, self.shifted)
        num_tokens = windows.num_tokens(x)
        mean = windows.split(described).sum(1) / num_tokens
        # Padding has q, k and v of zero.
        qkv = windows.split(self.qkv(x))
        out, v = projected_attention(qkv, self.num_heads, num_tokens[..., None, None])
        return self.proj(windows.join(self._add_convolution(out, v, mean, windows.size)))

    def _add_convolution(self, out: Tensor, v: Tensor, mean: Tensor, hw: tuple[int, int]) -> Tensor:
        """To out ``(B, T + N, C)``, the convolution of v ``(B, T + N, C)`` by the filters that the
        mean token ``(B, C)`` makes for each map or window."""
        filters, bias = self.filters(mean.unsqueeze(-1)).view(*mean.shape, 3, 3), None
        if self.lepe is not None:  # two convolutions of the same map are one
            filters, bias = filters + self.lepe.weight.squeeze(1), self.lepe.bias
        others = v.shape[1] - hw[0] * hw[1]
        convolved = dynamic_conv(v[:, others:], filters, hw, bias)
        return out + (F.pad(convolved, (0, 0, others, 0)) if others else convolved)

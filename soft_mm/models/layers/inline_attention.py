"""Injective linear attention of InLine (arXiv 2412.06590)."""

import torch.nn.functional as F
from torch import Tensor, nn

from ...ops import dynamic_conv, inline_self_attention, projected_attention
from .grouped_linear import GroupedLinear
from .heads import check_heads
from .windows import Windows


class InLineAttention(nn.Module):
    """Injective linear attention plus a dynamic convolution of its values.

    InLine (arXiv 2412.06590). The convolution is 3×3 and depth-wise; its filters are predicted from
    the mean token of each feature map or, with windows, of each window.

    Args:
        dims (int): embed dims of the tokens.
        num_heads (int): number of heads; must divide ``dims``.
        window_size (int, optional): window size, in tokens; None attends over the full feature map.
        shifted (bool): shift the windows by half their size.
        lepe (bool): add CSwin's locally enhanced positional encoding (arXiv 2107.00652), a 3×3
            depth-wise convolution of the values with learned filters.
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
            GroupedLinear(dims, dims, num_heads),
            nn.GELU(),
            GroupedLinear(dims, 9 * dims, num_heads),
        )
        self.lepe = nn.Conv2d(dims, dims, 3, padding=1, groups=dims) if lepe else None
        self.proj = nn.Linear(dims, dims)

    def forward(self, x: Tensor, hw: tuple[int, int], described: Tensor | None = None) -> Tensor:
        """Attend within the feature map or within each of its windows.

        Args:
            x: ``(B, T + N, C)``, T extra tokens, such as a class token, followed by the ``N = H·W``
                tokens of the feature map. Extra tokens take part in the attention but not in the
                convolution; T must be 0 with windows.
            hw: height and width ``(H, W)`` of the feature map.
            described: tokens with the shape of ``x`` whose mean predicts the filters; by default
                ``x``.

        Returns:
            ``(B, T + N, C)``.
        """
        if self.window_size is None:
            out, v, mean = inline_self_attention(x, self.qkv.weight, self.qkv.bias, self.num_heads)
            mean = mean if described is None else described.mean(1)
            return self.proj(self._add_convolution(out, v, mean, hw))
        windows = Windows.fit(hw, self.window_size, self.shifted)
        num_tokens = windows.num_tokens(x)
        mean = windows.split(x if described is None else described).sum(1) / num_tokens
        # Pad after the projection, whose bias would make q, k and v of padding nonzero.
        qkv = windows.split(self.qkv(x))
        out, v = projected_attention(qkv, self.num_heads, num_tokens[..., None, None])
        return self.proj(windows.join(self._add_convolution(out, v, mean, windows.size)))

    def _add_convolution(self, out: Tensor, v: Tensor, mean: Tensor, hw: tuple[int, int]) -> Tensor:
        """Add the dynamic convolution of ``v`` to ``out``, both ``(B, T + N, C)``.

        The mean tokens ``(B, C)`` predict the filters; B counts feature maps or windows.
        """
        filters, bias = self.filters(mean).view(*mean.shape, 3, 3), None
        if self.lepe is not None:  # both convolve v, so adding the filters merges them
            filters, bias = filters + self.lepe.weight.squeeze(1), self.lepe.bias
        num_extra = v.shape[1] - hw[0] * hw[1]
        convolved = dynamic_conv(v[:, num_extra:], filters, hw, bias)
        return out + (F.pad(convolved, (0, 0, num_extra, 0)) if num_extra else convolved)

"""Injective linear attention of InLine (arXiv 2412.06590)."""

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from ...ops import (
    inline_attention,
    inline_projected_attention,
    inline_self_attention,
    linear_attention,
)
from ...ops.inline_attention.reference import attention_rows
from ...ops.precision import at_least_fp32
from ...ops.shapes import split_heads
from ...ops.windows import Windows
from .grouped_linear import GroupedLinear
from .heads import check_heads
from .maps import as_map
from .plain import apply_linear, depthwise_filters, is_plain

# Kernel functions φ of queries and keys, for tokens of ``width`` channels per head.
KERNEL_FUNCTIONS = {
    'identity': lambda width: nn.Identity(),
    'relu': lambda width: nn.ReLU(),
    'leaky_relu': lambda width: nn.LeakyReLU(),
    'affine_relu': lambda width: nn.Sequential(nn.Linear(width, width), nn.ReLU()),
}
NORMALIZATIONS = {'subtraction': inline_attention, 'division': linear_attention}


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
        kernel_function (str): φ, which is applied to queries and keys: 'identity', 'relu',
            'leaky_relu' or 'affine_relu', ReLU(A·+b) with learned A and b that all heads share.
        normalization (str): of the attention weights: 'subtraction', or 'division' by their sum as in
            linear attention.
        dynamic_conv (bool): add the dynamic convolution.
    """

    def __init__(
        self,
        dims: int,
        num_heads: int,
        window_size: int | None = None,
        shifted: bool = False,
        lepe: bool = False,
        kernel_function: str = 'identity',
        normalization: str = 'subtraction',
        dynamic_conv: bool = True,
    ) -> None:
        super().__init__()
        check_heads(dims, num_heads)
        for name, value, allowed in (
            ('kernel_function', kernel_function, KERNEL_FUNCTIONS),
            ('normalization', normalization, NORMALIZATIONS),
        ):
            if value not in [*allowed]:
                raise ValueError(f'{name} must be one of {[*allowed]}, got {value!r}')
        if not isinstance(dynamic_conv, bool):
            raise ValueError(f'dynamic_conv must be True or False, got {dynamic_conv!r}')
        if window_size is not None and window_size < 1:
            raise ValueError(f'window_size must be None or at least 1, got {window_size}')
        self.num_heads = num_heads
        self.window_size = window_size
        self.shifted = shifted
        self.normalization = normalization
        self.is_released = (kernel_function, normalization) == ('identity', 'subtraction')
        self.qkv = nn.Linear(dims, 3 * dims)
        self.kernel_function = KERNEL_FUNCTIONS[kernel_function](dims // num_heads)
        self.filters = (
            nn.Sequential(
                GroupedLinear(dims, dims, num_heads),
                nn.GELU(),
                GroupedLinear(dims, 9 * dims, num_heads),
            )
            if dynamic_conv
            else None
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
        windows = Windows.fit(hw, self.window_size, self.shifted)
        mean = windows.mean(x if described is None else described)
        if self.is_released and is_plain(self.qkv, self.lepe):
            out = inline_self_attention(
                x,
                self.qkv.weight,
                self.qkv.bias,
                self._all_filters(mean),
                None if self.lepe is None else self.lepe.bias,
                self.num_heads,
                windows,
                mean if described is None else None,
            )
        else:
            qkv, filters = apply_linear(self.qkv, x), self._filters(mean)
            attention = None if self.is_released else partial(self._attend, windows)
            out = inline_projected_attention(
                qkv, filters, None, self.num_heads, windows, attention=attention
            )
            if self.lepe is not None:
                out = out + self._encode(qkv, windows)
        return apply_linear(self.proj, out)

    def _attend(
        self, windows: Windows, q: Tensor, k: Tensor, v: Tensor, num_tokens: Tensor | None
    ) -> Tensor:
        """Attention with other kernel functions or normalisations than the released models'."""
        q, k = self.kernel_function(q), self.kernel_function(k)
        if num_tokens is not None:  # a kernel function may map the zeros of padding to others
            padding = ~windows.real(k.device)
            k = k.masked_fill(padding.repeat(len(k) // len(padding), 1)[:, None, :, None], 0)
        return NORMALIZATIONS[self.normalization](q, k, v, num_tokens)

    def rows(
        self, x: Tensor, hw: tuple[int, int], queries: Tensor, described: Tensor | None = None
    ) -> Tensor:
        """Attention weights ``(B, h, M, T + N)`` of the tokens ``queries``, indices ``(M,)``.

        The other arguments are those of :meth:`forward`; ``described`` is unused.
        """
        q, k = (
            self.kernel_function(split_heads(t, self.num_heads))
            for t in self.qkv(x).chunk(3, -1)[:2]
        )
        window = self._window_of_tokens(x, hw)
        attended = window[queries, None] == window
        return attention_rows(q[:, :, queries], k, attended, self.normalization)

    def filters_of(
        self, x: Tensor, hw: tuple[int, int], queries: Tensor, described: Tensor | None = None
    ) -> Tensor | None:
        """Filters of the convolution at the tokens ``queries``, indices ``(M,)``.

        The other arguments are those of :meth:`forward`.

        Returns:
            ``(B, M, h, C / h, 3, 3)``; zero for extra tokens, which are not convolved. None without a
            convolution.
        """
        windows = Windows.fit(hw, self.window_size, self.shifted)
        filters = self._all_filters(windows.mean(x if described is None else described))
        if filters is None:
            return None
        filters = filters.unflatten(1, (self.num_heads, -1)).unflatten(0, (len(x), -1))
        is_extra = queries < x.shape[1] - hw[0] * hw[1]
        filters = filters[:, self._window_of_tokens(x, hw)[queries]]
        return filters.masked_fill(is_extra.view(-1, 1, 1, 1, 1), 0)

    def _window_of_tokens(self, x: Tensor, hw: tuple[int, int]) -> Tensor:
        """Window of each token of x, ``(T + N,)``; with extra tokens there is only one window."""
        window, _ = Windows.fit(hw, self.window_size, self.shifted).places(x.device)
        return F.pad(window, (x.shape[1] - len(window), 0))

    def _encode(self, qkv: Tensor, windows: Windows) -> Tensor:
        """Positional encoding of the values in qkv ``(B, N, 3·C)``, in each window: ``(B, N, C)``."""
        maps = as_map(windows.split(qkv.chunk(3, -1)[2]), windows.size)
        return windows.join(self.lepe(maps).flatten(2).mT)

    def _all_filters(self, mean: Tensor) -> Tensor | None:
        """The predicted filters plus those of ``lepe``, as both convolve v: ``(B, C, 3, 3)``."""
        filters = self._filters(mean)
        if self.lepe is None:
            return filters
        lepe = depthwise_filters(self.lepe, mean.shape[1], 3, mean)
        return lepe.repeat(len(mean), 1, 1, 1) if filters is None else filters + lepe

    @at_least_fp32
    def _filters(self, mean: Tensor) -> Tensor | None:
        """Predicted filters ``(B, C, 3, 3)``, from mean tokens ``(B, C)``; B counts maps or windows."""
        if self.filters is None:
            return None
        # Without autocast, which would save nothing for so few tokens but cast the weights.
        heads = mean.unflatten(1, (self.num_heads, -1)).transpose(0, 1)
        return self.filters(heads).transpose(0, 1).reshape(*mean.shape, 3, 3)

"""Learned absolute and relative position embeddings."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...ops.sizes import known
from .maps import channels_last


class _Table(nn.Module):
    """Learned table ``(1, C, H, W)``; tables of another size are resized when loaded."""

    def __init__(self, channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, channels, *size))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        key = prefix + 'weight'
        table = state_dict.get(key)
        own = self.weight.shape
        if isinstance(table, Tensor) and table.ndim == 4 and table.shape[:2] == own[:2]:
            state_dict[key] = _resize(table, own[-2:])
        super()._load_from_state_dict(state_dict, prefix, *args)


class PositionEmbed(_Table):
    """Learned position embedding, resized bilinearly to the feature map it is added to.

    An embedding of another size is resized when a checkpoint is loaded.

    Args:
        channels (int): channels of the feature map.
        size (tuple[int, int]): height and width of the embedding.
    """

    _last: tuple[Tensor, Tensor] | None = None  # the last weight and the result of resizing it

    def forward(self, x: Tensor) -> Tensor:
        """Add the position embedding to a feature map ``(B, C, H, W)``."""
        return x + self._resized(x.shape[-2:])

    def _resized(self, size: torch.Size) -> Tensor:
        """Resize the embedding, reusing the last result if neither weight nor size has changed.

        Only a comparison of values detects every change, because averaged weights are written
        without increasing the version counter. On a GPU, that comparison would synchronise with
        the host, and resizing takes microseconds, so results are reused on CPU only.
        """
        if (
            torch.is_grad_enabled()
            or torch.compiler.is_compiling()
            or self.weight.device.type != 'cpu'
        ):
            return _resize(self.weight, size)
        last = self._last  # read once: another thread may replace it
        if last is None or last[1].shape[-2:] != size or not torch.equal(last[0], self.weight):
            last = self._last = self.weight.clone(), _resize(self.weight, size)
        return last[1]


class RelativePositionBias(_Table):
    """Learned relative position bias, per head and offset between two tokens of a window.

    Swin Transformer (arXiv 2103.14030, eq. 4). The table of another window size is resized when a
    checkpoint is loaded.

    Args:
        num_heads (int): number of heads.
        window_size (int): largest window size.
    """

    def __init__(self, num_heads: int, window_size: int) -> None:
        super().__init__(num_heads, (2 * window_size - 1, 2 * window_size - 1))

    def forward(self, size: tuple[int, int]) -> Tensor:
        """Window height and width ``(h, w)`` -> bias ``(num_heads, h·w, h·w)``."""
        centre = self.weight.shape[-1] // 2
        dy, dx = (torch.arange(side, device=self.weight.device) for side in size)
        dy, dx = (centre + d[:, None] - d for d in (dy, dx))  # query minus key
        bias = self.weight[0][:, dy[:, None, :, None], dx[None, :, None, :]]
        return bias.flatten(3, 4).flatten(1, 2)


def _resize(table: Tensor, size: tuple[int, int]) -> Tensor:
    if all(known(has == wanted) for has, wanted in zip(table.shape[-2:], size)):
        return table
    return F.interpolate(channels_last(table), size=size, mode='bilinear', align_corners=False)

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .maps import channels_last
from .sizes import known


class _Table(nn.Module):
    """A learned table ``(1, C, H, W)``; one of another height or width is resized when it loads."""

    def __init__(self, channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, channels, *size))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        key = prefix + 'weight'
        table = state_dict.get(key)
        if table is not None and table.ndim == 4:
            state_dict[key] = _resize(table, self.weight.shape[-2:])
        super()._load_from_state_dict(state_dict, prefix, *args)


class PositionEmbed(_Table):
    """A learned table of positions, resized bilinearly to the map that it is added to.

    A checkpoint whose table has another height or width loads: its table is resized to this one's.

    Args:
        channels (int): channels of the map.
        size (tuple[int, int]): height and width of the table.
    """

    _last: tuple[Tensor, Tensor] | None = None  # a table and what it was resized to

    def forward(self, x: Tensor) -> Tensor:
        """Add the positions to a map ``(B, C, H, W)``."""
        return x + self._resized(x.shape[-2:])

    def _resized(self, size: torch.Size) -> Tensor:
        """The last one again where neither table nor size has changed.

        On a CPU, as looking at the numbers would make the host wait for a GPU, which resizes in
        microseconds; nothing less tells, as averaged weights are written past the version counter.
        """
        if (
            torch.is_grad_enabled()
            or torch.compiler.is_compiling()
            or self.weight.device.type != 'cpu'
        ):
            return _resize(self.weight, size)
        if (
            self._last is None
            or self._last[1].shape[-2:] != size
            or not torch.equal(self._last[0], self.weight)
        ):
            self._last = self.weight.clone(), _resize(self.weight, size)
        return self._last[1]


class RelativePositionBias(_Table):
    """A learned bias for each head and each offset between two tokens of a window.

    Swin Transformer (arXiv 2103.14030, eq. 4). A checkpoint with the table of another window size
    loads: its table is resized to this one's.

    Args:
        num_heads (int): number of heads.
        window_size (int): side of the largest window.
    """

    def __init__(self, num_heads: int, window_size: int) -> None:
        super().__init__(num_heads, (2 * window_size - 1, 2 * window_size - 1))

    def forward(self, size: tuple[int, int]) -> Tensor:
        """Height and width ``(h, w)`` of a window -> ``(num_heads, h·w, h·w)``."""
        centre = self.weight.shape[-1] // 2
        dy, dx = (torch.arange(side, device=self.weight.device) for side in size)
        dy, dx = (centre + d[:, None] - d for d in (dy, dx))  # query less key
        bias = self.weight[0][:, dy[:, None, :, None], dx[None, :, None, :]]
        return bias.flatten(3, 4).flatten(1, 2)


def _resize(table: Tensor, size: tuple[int, int]) -> Tensor:
    if all(known(has == wanted) for has, wanted in zip(table.shape[-2:], size)):
        return table
    return F.interpolate(channels_last(table), size=size, mode='bilinear', align_corners=False)

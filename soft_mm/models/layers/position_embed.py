import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PositionEmbed(nn.Module):
    """A learned table of positions, resized bilinearly to the map that it is added to.

    A checkpoint whose table has another height or width loads: its table is resized to this one's.

    Args:
        channels (int): channels of the map.
        size (tuple[int, int]): height and width of the table.
    """

    def __init__(self, channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, channels, *size))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Add the positions to a map ``(B, C, H, W)``."""
        return x + _resize(self.weight, x.shape[-2:])

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        key = prefix + 'weight'
        table = state_dict.get(key)
        if table is not None and table.ndim == 4:
            state_dict[key] = _resize(table, self.weight.shape[-2:])
        super()._load_from_state_dict(state_dict, prefix, *args)


def _resize(table: Tensor, size: tuple[int, int]) -> Tensor:
    if table.shape[-2:] == size:
        return table
    return F.interpolate(table, size=size, mode='bilinear', align_corners=False)

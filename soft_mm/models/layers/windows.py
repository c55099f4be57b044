"""Cutting a map into windows and putting it together again."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...ops.backend import is_exporting
from ...ops.shapes import ceil_div
from .sizes import known, smaller


@dataclass(frozen=True)
class Windows:
    """Equal windows over a map of any size, which is padded right and below to whole ones.

    Attributes:
        hw (tuple[int, int]): height and width of the map.
        size (tuple[int, int]): height and width of a window.
        shift (tuple[int, int]): how far the windows are moved down and right; what leaves the map
            on one side belongs to the window on the other (Swin's cyclic shift).
    """

    hw: tuple[int, int]
    size: tuple[int, int]
    shift: tuple[int, int] = (0, 0)

    @classmethod
    def fit(cls, hw: tuple[int, int], size: int, shifted: bool) -> 'Windows':
        """Square windows, moved by half their size if ``shifted``; the map where it is smaller."""
        # (side − 1) // size is 0 where one window takes the whole side.
        return cls(
            hw,
            tuple(smaller(side, size) for side in hw),
            tuple(smaller((side - 1) // size * size, size // 2) if shifted else 0 for side in hw),
        )

    def split(self, x: Tensor) -> Tensor:
        """``(B, H·W, C)`` -> ``(B·number of windows, h·w, C)``, padded with zeros."""
        (h, w), (rows, columns) = self.size, self._grid
        x = x.unflatten(1, self.hw)
        if self.padded:
            x = F.pad(x, (0, 0, 0, columns * w - self.hw[1], 0, rows * h - self.hw[0]))
        if self.shifted:
            x = _roll(x, (rows * h - self.shift[0], columns * w - self.shift[1]))
        x = x.unflatten(2, (columns, w)).unflatten(1, (rows, h)).transpose(2, 3)
        return x.flatten(3, 4).flatten(0, 2)

    def join(self, windows: Tensor) -> Tensor:
        """The inverse of ``split``: ``(B·number of windows, h·w, C)`` -> ``(B, H·W, C)``."""
        x = windows.unflatten(1, self.size).unflatten(0, (-1, *self._grid))
        x = x.transpose(2, 3).flatten(3, 4).flatten(1, 2)
        if self.shifted:
            x = _roll(x, self.shift)
        return x[:, : self.hw[0], : self.hw[1]].flatten(1, 2)

    def num_tokens(self, x: Tensor) -> Tensor:
        """How many tokens of a batch of maps ``(B, H·W, C)`` each window has: ``(windows, 1)``."""
        return self.split(torch.ones(*x.shape[:2], 1, device=x.device)).sum(1)

    def real(self, device: torch.device) -> Tensor:
        """Which tokens are no padding, the same for each map: ``(windows of a map, h·w)``."""
        return self.split(torch.ones(1, self.hw[0] * self.hw[1], 1, device=device))[..., 0] > 0

    def regions(self, device: torch.device) -> Tensor:
        """A number for each part of the map that the shift leaves whole: ``(windows, h·w)``.

        Tokens of one window whose numbers differ are neighbours only by the cyclic shift.
        """
        sides = []
        for rows, size, shift in zip(self._grid, self.size, self.shift):
            position = torch.arange(rows * size, device=device)
            sides.append((position >= shift).long())
        regions = 2 * sides[0][:, None] + sides[1]
        whole = Windows(tuple(regions.shape), self.size, self.shift)
        return whole.split(regions.flatten()[None, :, None])[..., 0]

    @property
    def _grid(self) -> tuple[int, int]:
        return tuple(ceil_div(side, size) for side, size in zip(self.hw, self.size))

    @property
    def shifted(self) -> bool:
        """Whether the windows may be moved."""
        return not all(known(shift == 0) for shift in self.shift)

    @property
    def padded(self) -> bool:
        """Whether some tokens of the windows may be padding."""
        return not all(known(side % size == 0) for side, size in zip(self.hw, self.size))


def _roll(x: Tensor, shift: tuple[int, int]) -> Tensor:
    """The maps ``(B, H, W, C)`` moved down and right, at most around once."""
    if not is_exporting():
        return x.roll(shift, (1, 2))
    # ONNX has no roll, and no remainder, by a number that depends on the image's size.
    source = (
        torch.arange(side, device=x.device) - moved for side, moved in zip(x.shape[1:3], shift)
    )
    rows, columns = (torch.where(place < 0, place + place.shape[0], place) for place in source)
    return x[:, rows][:, :, columns]

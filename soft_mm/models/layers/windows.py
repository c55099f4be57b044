"""Partition of feature maps into windows, with padding and cyclic shift."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...ops.backend import is_exporting
from ...ops.shapes import ceil_div
from .sizes import known, smaller


@dataclass(frozen=True)
class Windows:
    """Partition of a feature map of any size into equal windows.

    The feature map is padded at the right and bottom to a multiple of the window size.

    Attributes:
        hw (tuple[int, int]): height and width of the feature map.
        size (tuple[int, int]): height and width of a window.
        shift (tuple[int, int]): Swin's cyclic shift: how far the windows move down and right,
            wrapping around at the border.
    """

    hw: tuple[int, int]
    size: tuple[int, int]
    shift: tuple[int, int] = (0, 0)

    @classmethod
    def fit(cls, hw: tuple[int, int], size: int, shifted: bool) -> 'Windows':
        """Square windows, shifted by half their size if ``shifted``, but no larger than the map."""
        # (side − 1) // size is 0 if one window covers the side, which then needs no shift.
        return cls(
            hw,
            tuple(smaller(side, size) for side in hw),
            tuple(smaller((side - 1) // size * size, size // 2) if shifted else 0 for side in hw),
        )

    def split(self, x: Tensor) -> Tensor:
        """Partition: ``(B, H·W, C)`` -> ``(B·number of windows, h·w, C)``, zero-padded."""
        (h, w), (rows, columns) = self.size, self._grid
        x = x.unflatten(1, self.hw)
        if self.padded:
            x = F.pad(x, (0, 0, 0, columns * w - self.hw[1], 0, rows * h - self.hw[0]))
        if self.shifted:
            x = _roll(x, (rows * h - self.shift[0], columns * w - self.shift[1]))
        x = x.unflatten(2, (columns, w)).unflatten(1, (rows, h)).transpose(2, 3)
        return x.flatten(3, 4).flatten(0, 2)

    def join(self, windows: Tensor) -> Tensor:
        """Inverse of ``split``: ``(B·number of windows, h·w, C)`` -> ``(B, H·W, C)``."""
        x = windows.unflatten(1, self.size).unflatten(0, (-1, *self._grid))
        x = x.transpose(2, 3).flatten(3, 4).flatten(1, 2)
        if self.shifted:
            x = _roll(x, self.shift)
        return x[:, : self.hw[0], : self.hw[1]].flatten(1, 2)

    def num_tokens(self, x: Tensor) -> Tensor:
        """Number of tokens, without padding, in each window of ``x``: ``(B·windows, 1)``."""
        return self.split(torch.ones(*x.shape[:2], 1, device=x.device)).sum(1)

    def real(self, device: torch.device) -> Tensor:
        """Mask of the tokens that are not padding: ``(windows of one feature map, h·w)``."""
        return self.split(torch.ones(1, self.hw[0] * self.hw[1], 1, device=device))[..., 0] > 0

    def regions(self, device: torch.device) -> Tensor:
        """Region index of each token: ``(windows of one feature map, h·w)``.

        Tokens of one window with different indices are adjacent only because of the cyclic shift.
        """
        sides = []
        for rows, size, shift in zip(self._grid, self.size, self.shift):
            position = torch.arange(rows * size, device=device)
            sides.append((position >= shift).long())
        regions = 2 * sides[0][:, None] + sides[1]
        padded = Windows(tuple(regions.shape), self.size, self.shift)
        return padded.split(regions.flatten()[None, :, None])[..., 0]

    @property
    def _grid(self) -> tuple[int, int]:
        return tuple(ceil_div(side, size) for side, size in zip(self.hw, self.size))

    @property
    def shifted(self) -> bool:
        """Whether the windows are shifted, or may be if sizes are symbolic."""
        return not all(known(shift == 0) for shift in self.shift)

    @property
    def padded(self) -> bool:
        """Whether the windows contain padding, or may if sizes are symbolic."""
        return not all(known(side % size == 0) for side, size in zip(self.hw, self.size))


def _roll(x: Tensor, shift: tuple[int, int]) -> Tensor:
    """Cyclically shift feature maps ``(B, H, W, C)`` down and right, by up to their size."""
    if not is_exporting():
        return x.roll(shift, (1, 2))
    # ONNX can neither roll nor compute a remainder by a number that depends on the image size.
    source = (
        torch.arange(side, device=x.device) - offset for side, offset in zip(x.shape[1:3], shift)
    )
    rows, columns = (torch.where(i < 0, i + i.shape[0], i) for i in source)
    return x[:, rows][:, :, columns]

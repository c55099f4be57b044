"""Partition of feature maps into windows, with padding and cyclic shift."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .backend import is_exporting
from .precision import at_least_fp32
from .shapes import ceil_div
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
    def fit(cls, hw: tuple[int, int], size: int | None, shifted: bool) -> 'Windows':
        """Square windows, shifted by half their size if ``shifted``, but no larger than the map.

        With ``size`` None one window covers the map.
        """
        if size is None:
            return cls(hw, hw)
        # (side − 1) // size is 0 if one window covers the side, which then needs no shift.
        return cls(
            hw,
            tuple(smaller(side, size) for side in hw),
            tuple(smaller((side - 1) // size * size, size // 2) if shifted else 0 for side in hw),
        )

    def split(self, x: Tensor) -> Tensor:
        """Partition: ``(B, H·W, C)`` -> ``(B·number of windows, h·w, C)``, zero-padded.

        If one window covers the map, the tokens are returned as they are, with extra ones.
        """
        if self.is_whole:
            return x
        source, target = self._indices(x.device)
        x = _Permute.apply(x, source, target, self.padded, False)
        return x.unflatten(1, (-1, self.size[0] * self.size[1])).flatten(0, 1)

    def join(self, windows: Tensor) -> Tensor:
        """Inverse of ``split``: ``(B·number of windows, h·w, C)`` -> ``(B, H·W, C)``."""
        if self.is_whole:
            return windows
        source, target = self._indices(windows.device)
        rows, columns = self._grid
        windows = windows.unflatten(0, (-1, rows * columns)).flatten(1, 2)
        return _Permute.apply(windows, target, source, False, self.padded)

    def mean(self, x: Tensor) -> Tensor:
        """Mean token of each window, without padding: ``(B, N, C)`` -> ``(B·number of windows, C)``.

        If one window covers the map, extra tokens, such as a class token, take part.
        """
        return x.mean(1) if self.is_whole else self._means(x)

    @at_least_fp32
    def _means(self, x: Tensor) -> Tensor:
        # By two products with small matrices, which read the tokens where they lie.
        rows, columns = (self._averages(axis, x) for axis in (0, 1))
        means = rows @ x.unflatten(1, self.hw).flatten(2)
        return (columns @ means.unflatten(2, (self.hw[1], -1))).flatten(0, 2)

    def _averages(self, axis: int, like: Tensor) -> Tensor:
        """Matrix ``(windows along the axis, side)`` that averages the tokens of each window."""
        side, size, count = self.hw[axis], self.size[axis], self._grid[axis]
        place = torch.arange(side, device=like.device) - self.shift[axis]
        place = torch.where(place < 0, place + count * size, place)
        inside = (place // size == torch.arange(count, device=like.device)[:, None]).to(like)
        return inside / inside.sum(1, keepdim=True)

    def num_tokens(self, x: Tensor) -> Tensor:
        """Number of tokens, without padding, in each window of ``x``: ``(B·windows, 1)``."""
        real = self.real(x.device).sum(1, keepdim=True, dtype=torch.float32)
        return real.repeat(x.shape[0], 1)

    def real(self, device: torch.device) -> Tensor:
        """Mask of the tokens that are not padding: ``(windows of one feature map, h·w)``."""
        return (self._indices(device)[0] >= 0).unflatten(0, (-1, self.size[0] * self.size[1]))

    def regions(self, device: torch.device) -> Tensor:
        """Region index of each token: ``(windows of one feature map, h·w)``.

        Tokens of one window with different indices are adjacent only because of the cyclic shift.
        """
        sides = []
        for rows, size, shift in zip(self._grid, self.size, self.shift):
            position = torch.arange(rows * size, device=device)
            sides.append((position >= shift).long())
        return self._cut(2 * sides[0][:, None] + sides[1])

    def places(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """For each token of the map ``(H·W,)`` its window, and its place in the window."""
        target = self._indices(device)[1]
        number = self.size[0] * self.size[1]
        return target // number, target % number

    def _indices(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """For each place in the windows the token of the map, −1 for padding; and the reverse."""
        (height, width), (rows, columns) = self.hw, self._grid
        source = torch.arange(height * width, device=device).unflatten(0, self.hw)
        if self.padded:
            bottom, right = rows * self.size[0] - height, columns * self.size[1] - width
            source = F.pad(source, (0, right, 0, bottom), value=-1)
        target = torch.arange(source.numel(), device=device).unflatten(0, (-1, *self.size))
        target = target.unflatten(0, self._grid).transpose(1, 2).flatten(2, 3).flatten(0, 1)
        if self.shifted:
            target = _roll(target, self.shift)
        return self._cut(source).flatten(), target[:height, :width].flatten()

    def _cut(self, padded: Tensor) -> Tensor:
        """Shift and cut a padded map: ``(rows·h, columns·w)`` -> ``(windows, h·w)``."""
        (h, w), (rows, columns) = self.size, self._grid
        if self.shifted:
            padded = _roll(padded, tuple(-shift for shift in self.shift))
        windows = padded.unflatten(1, (columns, w)).unflatten(0, (rows, h)).transpose(1, 2)
        return windows.flatten(2, 3).flatten(0, 1)

    @property
    def _grid(self) -> tuple[int, int]:
        return tuple(ceil_div(side, size) for side, size in zip(self.hw, self.size))

    @property
    def is_whole(self) -> bool:
        """Whether one window covers the map, for all sizes if they are symbolic."""
        return all(known(side == size) for side, size in zip(self.hw, self.size))

    @property
    def shifted(self) -> bool:
        """Whether the windows are shifted, or may be if sizes are symbolic."""
        return not all(known(shift == 0) for shift in self.shift)

    @property
    def padded(self) -> bool:
        """Whether the windows contain padding, or may if sizes are symbolic."""
        return not all(known(side % size == 0) for side, size in zip(self.hw, self.size))


class _Permute(torch.autograd.Function):
    """Move tokens. The gradient moves back, where PyTorch would add it to zeros token by token."""

    @staticmethod
    def forward(ctx, x: Tensor, source: Tensor, target: Tensor, fills: bool, drops: bool) -> Tensor:
        """``(B, N, C)`` -> ``(B, M, C)``: the tokens ``source``, zeros where it is −1.

        ``target`` is the reverse: the place of each of the N tokens, −1 for those that are dropped.
        """
        ctx.save_for_backward(source, target)
        ctx.fills, ctx.drops = fills, drops
        x = x.index_select(1, source.clamp(min=0) if fills else source)
        return x.masked_fill((source < 0)[:, None], 0) if fills else x

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        source, target = ctx.saved_tensors
        return _Permute.apply(grad, target, source, ctx.drops, ctx.fills), None, None, None, None


def _roll(x: Tensor, shift: tuple[int, int]) -> Tensor:
    """Cyclically shift maps ``(H, W)`` down and right, by up to their size in either direction."""
    if not is_exporting():
        return x.roll(shift, (0, 1))
    # ONNX can neither roll nor compute a remainder by a number that depends on the image size.
    for dim, offset in enumerate(shift):
        side = x.shape[dim]
        source = torch.arange(side, device=x.device) - offset
        source = torch.where(source < 0, source + side, source)
        source = torch.where(source >= side, source - side, source)
        x = x.index_select(dim, source)
    return x

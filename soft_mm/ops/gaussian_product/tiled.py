"""The product tile by tile; the backward pass recomputes the tiles of the kernel matrix."""

from collections.abc import Iterator
from math import prod

import torch
from torch import Tensor

from ..gaussian_kernel.expanded import augmented, centred
from ..precision import at_least_fp32

# Elements of a tile: small enough for a CPU's cache, large enough to occupy a GPU.
TILE = {'cpu': 2**21, 'cuda': 2**26}


def tile_size(device: torch.device) -> int:
    """Number of elements of a tile on this device."""
    return TILE.get(device.type, TILE['cuda'])


class _TiledKernel:
    """Tiles of ``exp(-½‖a_i − b_j‖²)``, each covering all of b and some rows of a.

    a ``(L, M, d)``, b ``(L, N, d)``.
    """

    def __init__(self, a: Tensor, b: Tensor) -> None:
        self.a, b = augmented(a, b)
        self.b = b.mT
        self.rows = max(16, tile_size(a.device) // max(1, a.shape[0] * b.shape[1]))

    def tiles(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield rows and their tile ``(L, rows, N)``; the next tile reuses its memory."""
        count = self.a.shape[1]
        buffer = self.a.new_empty(self.a.shape[0], min(self.rows, count), self.b.shape[2])
        for start in range(0, count, self.rows):
            rows = slice(start, min(start + self.rows, count))
            tile = buffer[:, : rows.stop - start]
            torch.bmm(self.a[:, rows], self.b, out=tile)
            yield rows, tile.clamp_(max=0).exp_()


def _flatten_leading(*tensors: Tensor) -> list[Tensor]:
    """Flatten the leading dimensions of each tensor into one."""
    return [x.reshape(prod(x.shape[:-2]), *x.shape[-2:]) for x in tensors]


def empty(like: Tensor, channels: int, dtype: torch.dtype) -> Tensor:
    """An uninitialised ``(..., n, channels)``, as the ops return it for ``like`` ``(..., n, ·)``."""
    return like.new_empty(*like.shape[:-1], channels, dtype=dtype)


@at_least_fp32
def product(q: Tensor, k: Tensor, v: Tensor, dtype: torch.dtype) -> Tensor:
    """q ``(..., M, d)``, k ``(..., N, d)``, v ``(..., N, e)`` -> ``(..., M, e)``."""
    out = v.new_zeros(*q.shape[:-1], v.shape[-1])
    flat, values, q, k = _flatten_leading(out, v, q, k)
    if q.shape[1] >= k.shape[1]:
        for rows, tile in _TiledKernel(*centred(q, k)).tiles():
            flat[:, rows] = tile @ values
    else:
        for rows, tile in _TiledKernel(*centred(k, q)).tiles():
            flat.baddbmm_(tile.mT, values[:, rows])
    return out.to(dtype)


@at_least_fp32
def gradients(grad: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v from the gradient ``(..., M, e)`` of the product."""
    shapes = q.shape, k.shape, v.shape
    grad, q, k, v = _flatten_leading(grad, q, k, v)
    if q.shape[1] >= k.shape[1]:
        grad_q, grad_k, grad_v = _gradients(*centred(q, k), grad, v, x_is_v=False)
    else:
        grad_k, grad_q, grad_v = _gradients(*centred(k, q), v, grad, x_is_v=True)
    return tuple(x.view(shape) for x, shape in zip((grad_q, grad_k, grad_v), shapes))


def _gradients(
    a: Tensor, b: Tensor, x: Tensor, y: Tensor, x_is_v: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a, b and v; README.md has the formulas.

    x has one row per token of a, y one per token of b. One of them is v, as ``x_is_v`` says, and
    the other is the gradient of the product.
    """
    grad_a, grad_b = torch.empty_like(a), torch.zeros_like(b)
    grad_v = torch.empty_like(x) if x_is_v else torch.zeros_like(y)
    sums = b.new_zeros(*b.shape[:-1], 1)
    for rows, tile in _TiledKernel(a, b).tiles():
        if x_is_v:
            grad_v[:, rows] = tile @ y
        else:
            grad_v.baddbmm_(tile.mT, x[:, rows])
        p = (x[:, rows] @ y.mT).mul_(tile)
        grad_a[:, rows] = (p @ b).sub_(p.sum(-1, keepdim=True) * a[:, rows])
        grad_b.baddbmm_(p.mT, a[:, rows])
        sums += p.sum(-2).unsqueeze(-1)
    return grad_a, grad_b.sub_(sums * b), grad_v

"""The product tile by tile, forward and backward: each tile of the kernel matrix is made anew."""

from collections.abc import Iterator
from math import prod

import torch
from torch import Tensor

from ..gaussian_kernel.expanded import centred, widened
from ..precision import at_least_fp32

# Elements of a tile: one that stays in a CPU's cache, and one that fills a GPU.
TILE = {'cpu': 2**21, 'cuda': 2**26}


def tile_size(device: torch.device) -> int:
    """Elements of a tile on this device."""
    return TILE.get(device.type, TILE['cuda'])


class _Kernel:
    """Tiles of ``exp(-½‖a_i − b_j‖²)``, whole in b and cut along a.

    a ``(L, M, d)``, b ``(L, N, d)``.
    """

    def __init__(self, a: Tensor, b: Tensor) -> None:
        self.a, b = widened(a, b)
        self.b = b.mT
        self.rows = max(16, tile_size(a.device) // max(1, a.shape[0] * b.shape[1]))

    def tiles(self) -> Iterator[tuple[slice, Tensor]]:
        """Rows, and the tile of these rows ``(L, rows, N)``, which the next one overwrites."""
        count = self.a.shape[1]
        buffer = self.a.new_empty(self.a.shape[0], min(self.rows, count), self.b.shape[2])
        for start in range(0, count, self.rows):
            rows = slice(start, min(start + self.rows, count))
            tile = buffer[:, : rows.stop - start]
            torch.bmm(self.a[:, rows], self.b, out=tile)
            yield rows, tile.clamp_(max=0).exp_()


def _stack(*tensors: Tensor) -> list[Tensor]:
    """Leading dimensions as one."""
    return [x.reshape(prod(x.shape[:-2]), *x.shape[-2:]) for x in tensors]


@at_least_fp32
def product(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q ``(..., M, d)``, k ``(..., N, d)``, v ``(..., N, e)`` -> ``(..., M, e)``."""
    out = v.new_zeros(*q.shape[:-1], v.shape[-1])
    flat, values, q, k = _stack(out, v, q, k)
    if q.shape[1] >= k.shape[1]:
        for rows, tile in _Kernel(*centred(q, k)).tiles():
            flat[:, rows] = tile @ values
    else:
        for rows, tile in _Kernel(*centred(k, q)).tiles():
            flat.baddbmm_(tile.mT, values[:, rows])
    return out


@at_least_fp32
def gradients(grad: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of q, k and v, from that of the product ``(..., M, e)``."""
    shapes = q.shape, k.shape, v.shape
    grad, q, k, v = _stack(grad, q, k, v)
    if q.shape[1] >= k.shape[1]:
        grad_q, grad_k, grad_v = _gradients(*centred(q, k), grad, v, cut_v=False)
    else:
        grad_k, grad_q, grad_v = _gradients(*centred(k, q), v, grad, cut_v=True)
    return tuple(x.view(shape) for x, shape in zip((grad_q, grad_k, grad_v), shapes))


def _gradients(
    a: Tensor, b: Tensor, x: Tensor, y: Tensor, cut_v: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Of a, of b and of v, which is cut with a or whole with b, as README.md has them.

    One of x and y, which go with a and b, is v, the other the gradient of the product.
    """
    grad_a, grad_b = torch.empty_like(a), torch.zeros_like(b)
    grad_v = torch.empty_like(x) if cut_v else torch.zeros_like(y)
    sums = b.new_zeros(*b.shape[:-1], 1)
    for rows, tile in _Kernel(a, b).tiles():
        if cut_v:
            grad_v[:, rows] = tile @ y
        else:
            grad_v.baddbmm_(tile.mT, x[:, rows])
        p = (x[:, rows] @ y.mT).mul_(tile)
        grad_a[:, rows] = (p @ b).sub_(p.sum(-1, keepdim=True) * a[:, rows])
        grad_b.baddbmm_(p.mT, a[:, rows])
        sums += p.sum(-2).unsqueeze(-1)
    return grad_a, grad_b.sub_(sums * b), grad_v

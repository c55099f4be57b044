import pytest
import torch
from torch import Tensor

from soft_mm.ops import dynamic_conv
from soft_mm.ops.dynamic_conv.reference import dynamic_conv as reference


def inputs_of(b: int, hw: tuple[int, int], c: int, k: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (b, hw[0] * hw[1], c), (b, c, k, k), (c, )
    return [torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_()
            for shape in shapes]


@pytest.mark.parametrize(('b', 'hw', 'c', 'k'), [(2, (5, 7), 6, 3), (1, (1, 1), 3, 3),
                                                 (3, (2, 9), 1, 5)])
@pytest.mark.parametrize('kernel', ['torch', 'reference'])
def test_equals_the_definition(kernel, b, hw, c, k):
    x, filters, bias = inputs_of(b, hw, c, k)
    out = dynamic_conv(x, filters, hw, bias, kernel).unflatten(1, hw)
    padded = torch.nn.functional.pad(x.unflatten(1, hw), (0, 0, *2 * [k // 2, k // 2]))
    expected = sum(filters[:, :, i, j][:, None, None] * padded[:, i:i + hw[0], j:j + hw[1]]
                   for i in range(k) for j in range(k)) + bias
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize('b', [1, 2])
def test_every_gradient(b):
    qkv, filters, bias = inputs_of(b, (5, 7), 18)
    x = qkv[..., 12:]  # as it comes: a part of wider tokens
    leaves = qkv, filters, bias
    filters = filters[:, :6]
    ours, theirs = (fn(x, filters, (5, 7), bias[:6]) for fn in (dynamic_conv, reference))
    torch.testing.assert_close(ours, theirs)
    grad = torch.randn(ours.shape, dtype=ours.dtype, generator=torch.Generator().manual_seed(1))
    for got, expected in zip(torch.autograd.grad(ours, leaves, grad),
                             torch.autograd.grad(theirs, leaves, grad)):
        torch.testing.assert_close(got, expected)


def test_shapes_are_checked():
    x, filters, _ = inputs_of(2, (5, 7), 6)
    with pytest.raises(ValueError, match=r'\(2, 35, 6\), \(2, 6, 3, 3\) and \(H, W\) = \(5, 6\)'):
        dynamic_conv(x, filters, (5, 6))
    with pytest.raises(ValueError, match=r'\(1, 6, 3, 3\)'):
        dynamic_conv(x, filters[:1], (5, 7))

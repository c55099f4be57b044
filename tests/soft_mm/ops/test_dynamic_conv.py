import pytest
import torch

from soft_mm.ops import dynamic_conv
from soft_mm.ops.dynamic_conv.reference import dynamic_conv as reference


def tokens(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize('size', [(2, 5, 7, 3), (1, 1, 1, 1), (3, 2, 9, 8)])  # B, H, W, C
@pytest.mark.parametrize('biased', [False, True])
def test_equals_the_definition_with_every_gradient(size, biased):
    b, h, w, c = size
    inputs = [tokens(b, h * w, 3 * c)[..., c:2 * c], tokens(b, c, 3, 3), *([tokens(c)] * biased)]
    inputs = [x.requires_grad_() for x in inputs]
    outs = [fn(*inputs[:2], (h, w), *inputs[2:]) for fn in (dynamic_conv, reference)]
    torch.testing.assert_close(*outs)
    for got, expected in zip(*(torch.autograd.grad(out, inputs, tokens(*out.shape))
                               for out in outs)):
        torch.testing.assert_close(got, expected)


def test_each_map_has_its_own_filters():
    filters = torch.zeros(2, 1, 3, 3)
    filters[0, 0, 1, 1] = 1  # stays
    filters[1, 0, 1, 0] = 1  # takes what is to its left
    out = dynamic_conv(torch.arange(1., 7).repeat(2, 1)[..., None], filters, (2, 3))
    assert out[0, :, 0].tolist() == [1, 2, 3, 4, 5, 6]
    assert out[1, :, 0].tolist() == [0, 1, 2, 0, 4, 5]


@pytest.mark.parametrize('shapes', [
    ((2, 7, 3), (2, 3, 3, 3), (3, )),
    ((2, 6, 3), (1, 3, 3, 3), (3, )),
    ((2, 6, 3), (2, 3, 3, 3), (4, )),
])
def test_shapes_are_checked(shapes):
    v, filters, bias = map(torch.zeros, shapes)
    with pytest.raises(ValueError, match=r'v must be \(B, H·W, C\).* for \(H, W\) = \(2, 3\)'):
        dynamic_conv(v, filters, (2, 3), bias)

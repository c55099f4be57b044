from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from soft_mm.ops import linear
from soft_mm.ops.linear import linear_gelu, onednn, weight_gradient

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason='this torch has no oneDNN'
)


def inputs_of(*tokens: int, dims: int, out: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (*tokens, dims), (out, dims), (out,)
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


def assert_rounded(ours: Tensor, a: Tensor, b: Tensor, c: Tensor | float = 0.0) -> None:
    """``ours`` is ``a b + c`` up to the rounding of sums in fp32, in any order."""
    a, b, c = (torch.as_tensor(t).detach().double() for t in (a, b, c))
    error = (ours.double() - (a @ b + c)).abs()
    allowed = (a.shape[-1] + 1) * torch.finfo(ours.dtype).eps * (a.abs() @ b.abs() + c.abs())
    assert (error <= allowed).all()


@pytest.mark.parametrize('strided', [False, True])
@pytest.mark.parametrize(
    ('tokens', 'dims', 'out'), [((2, 130), 16, 96), ((1, 5, 60), 96, 16), ((4200,), 64, 64)]
)
def test_equals_the_formula_with_every_gradient(tokens, dims, out, strided):
    x, weight, bias = inputs = inputs_of(*tokens, dims=dims, out=out)
    if strided:
        x, weight = (t.detach().mT.contiguous().mT.requires_grad_() for t in (x, weight))
        inputs = x, weight, bias
    ours = linear(*inputs)
    assert 'LinearBackward' in type(ours.grad_fn).__name__, 'oneDNN was not used'
    assert ours.shape == (*tokens, out)
    grad = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))
    grad_x, grad_weight, grad_bias = torch.autograd.grad(ours, inputs, grad)
    flat_grad, flat_x = grad.flatten(0, -2), x.flatten(0, -2)
    assert_rounded(ours, x, weight.T, bias)
    assert_rounded(grad_x, grad, weight)
    assert_rounded(grad_weight, flat_grad.T, flat_x)
    assert_rounded(grad_bias, torch.ones(len(flat_grad)), flat_grad)
    assert_rounded(weight_gradient(flat_grad, flat_x), flat_grad.T, flat_x)


@pytest.mark.parametrize('approximate', ['none', 'tanh'])
def test_gelu_without_a_gradient(approximate):
    x, weight, bias = inputs_of(4200, dims=64, out=64)
    with torch.no_grad():
        ours = linear_gelu(x, weight, bias, approximate)
        before = F.linear(*(t.double() for t in (x, weight, bias)))
    eps = torch.finfo(torch.float32).eps
    # The slope of GELU is at most 1.13, and its own rounding a few digits of x and of tanh or erf.
    allowed = 1.13 * 65 * eps * (x.abs() @ weight.abs().T + bias.abs()) + 8 * eps * (
        1 + before.abs()
    )
    assert ((ours - F.gelu(before, approximate=approximate)).abs() <= allowed).all()
    assert linear_gelu(x, weight, bias, approximate).requires_grad


def test_second_derivatives():
    """As a gradient penalty needs them."""
    found = []
    for layer in linear, F.linear:
        x, weight, bias = inputs_of(300, dims=32, out=32)
        (grad,) = torch.autograd.grad(layer(x, weight, bias).pow(3).mean(), x, create_graph=True)
        found.append(torch.autograd.grad(grad.square().sum(), (x, weight, bias)))
    for ours, theirs in zip(*found):
        # Three products of at most 300 terms; their sums may cancel.
        tolerance = 3 * 300 * torch.finfo(torch.float32).eps * theirs.abs().max().item()
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


@pytest.mark.parametrize('needed', range(3))
def test_only_the_gradients_that_are_needed(needed):
    inputs = [t.requires_grad_(i == needed) for i, t in enumerate(inputs_of(300, dims=32, out=32))]
    linear(*inputs).sum().backward()
    assert [t.grad is not None for t in inputs] == [i == needed for i in range(3)]


@pytest.mark.parametrize(
    ('name', 'context'),
    [
        ('few multiply-adds', nullcontext),
        ('reference', nullcontext),
        ('float64', nullcontext),
        ('autocast', lambda: torch.autocast('cpu', torch.bfloat16)),
        ('counter', lambda: FlopCounterMode(display=False)),
        ('oneDNN is off', lambda: torch.backends.mkldnn.flags(enabled=False)),
    ],
)
def test_pytorch_computes_all_else(name, context):
    inputs = inputs_of(2 if name == 'few multiply-adds' else 300, dims=32, out=32)
    if name == 'float64':
        inputs = [t.double() for t in inputs]
    with context():
        out = linear(*inputs, backend='reference' if name == 'reference' else None)
        assert torch.equal(out, F.linear(*inputs))
    assert 'LinearBackward' not in type(out.grad_fn).__name__


def test_tracers_see_pytorch_operators():
    inputs = [t.detach() for t in inputs_of(300, dims=32, out=32)]
    assert 'aten::linear' in str(torch.jit.trace(linear, inputs).graph)
    compiled = torch.compile(linear, fullgraph=True, backend='eager')
    assert torch.equal(compiled(*inputs), F.linear(*inputs))
    assert not onednn.supports(torch.empty(300, 32, device='meta'), *inputs[1:])
    mapped = torch.func.vmap(linear, in_dims=(0, None, None))(inputs[0][None], *inputs[1:])
    assert torch.equal(mapped[0], F.linear(*inputs))


def test_weights_of_a_larger_matrix_are_copied():
    """oneDNN computes their layer by its reference implementation, which takes a thousand times as long."""
    x, weight = torch.randn(4, 8), torch.randn(8, 16)

    class Strides(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.mkldnn._linear_pointwise.default:
                seen.append(sorted(args[1].stride()))
            return func(*args, **(kwargs or {}))

    seen = []
    with Strides():
        onednn.linear(x, weight[:, :8], None)
        onednn.linear(x, weight[:, :8].T, None)
    assert seen == [[1, 8], [1, 8]]

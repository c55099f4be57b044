import pytest
import torch
from torch import Tensor

from soft_mm.ops import mlp
from soft_mm.ops.mlp import tiled
from soft_mm.ops.mlp.reference import mlp as reference


def inputs_of(*tokens: int, dims=6, hidden=20, out=5, dtype=torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (*tokens, dims), (hidden, dims), (hidden,), (out, hidden), (out,)
    return [
        torch.randn(shape, dtype=dtype, generator=generator).requires_grad_() for shape in shapes
    ]


@pytest.fixture
def tiles(monkeypatch):
    """Process 64 tokens at a time, however few there are."""
    monkeypatch.setattr(tiled, 'TILE', 1)
    monkeypatch.setattr(tiled, 'WORTHWHILE', 0)


@pytest.mark.parametrize('approximate', ['none', 'tanh'])
@pytest.mark.parametrize('tokens', [(2, 131), (64,), (1,)])
def test_equals_the_reference_with_every_gradient(tiles, tokens, approximate):
    inputs = inputs_of(*tokens)
    ours, theirs = mlp(*inputs, approximate), reference(*inputs, approximate)
    torch.testing.assert_close(ours, theirs)
    grad = torch.randn(ours.shape, dtype=ours.dtype, generator=torch.Generator().manual_seed(1))
    for got, expected in zip(
        torch.autograd.grad(ours, inputs, grad), torch.autograd.grad(theirs, inputs, grad)
    ):
        torch.testing.assert_close(got, expected)


def test_gradcheck(tiles):
    assert torch.autograd.gradcheck(mlp, inputs_of(2, 3))


def test_opcheck():
    torch.library.opcheck(torch.ops.soft_mm.mlp, (*inputs_of(2, 3, dtype=torch.float32), 'tanh'))


def test_non_contiguous(tiles):
    x, *weights = inputs_of(2, 6, dims=131)
    x, weights[0] = x.mT, weights[0][:, :6]
    torch.testing.assert_close(mlp(x, *weights), reference(x, *weights))


def test_hidden_values_are_not_saved(tiles):
    inputs, sizes = inputs_of(500), []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: sizes.append(t.numel()) or t, lambda t: t
    ):
        mlp(*inputs)
    assert max(sizes) == 500 * 6


@pytest.mark.parametrize('backend', ['torch', 'reference'])
def test_autocast_and_few_tokens_use_pytorch_layers(backend):
    inputs = inputs_of(3, dtype=torch.float32)
    assert torch.equal(mlp(*inputs, backend=backend), reference(*inputs))
    with torch.autocast('cpu', torch.bfloat16):
        assert mlp(*inputs, backend=backend).dtype == torch.bfloat16

import pytest
import torch
from torch import Tensor

from soft_mm.ops import gaussian_product
from soft_mm.ops.gaussian_product import tiled
from soft_mm.ops.gaussian_product.reference import gaussian_product as reference

SIZES = [(2, 3, 49, 7, 32, 5), (1, 1, 1, 1, 1, 1), (2, 1, 17, 65, 9, 33)]  # B, h, M, N, d, e


def tokens(*shape: int, dtype=torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(sum(shape)))


def inputs_of(b, h, m, n, d, e, dtype=torch.float64) -> list[Tensor]:
    return [
        tokens(b, h, m, d, dtype=dtype) * d**-0.25,
        tokens(b, h, n, d, dtype=dtype) * d**-0.25,
        tokens(b, h, n, e, dtype=dtype),
    ]


@pytest.fixture(params=[1, 2**21])
def tile(request, monkeypatch):
    """Tiles of 16 rows, of which the last is smaller, or a single tile."""
    monkeypatch.setitem(tiled.TILE, 'cpu', request.param)


@pytest.mark.parametrize('size', SIZES)
def test_equals_the_reference_with_every_gradient(size, tile):
    inputs = [t.requires_grad_() for t in inputs_of(*size)]
    ours, theirs = gaussian_product(*inputs), reference(*inputs)
    torch.testing.assert_close(ours, theirs)
    grad = tokens(*ours.shape)
    for got, expected in zip(
        torch.autograd.grad(ours, inputs, grad), torch.autograd.grad(theirs, inputs, grad)
    ):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize('size', [(2, 1, 5, 3, 4, 2), (1, 2, 3, 5, 4, 2)])
def test_gradcheck(size):
    assert torch.autograd.gradcheck(
        gaussian_product, [t.requires_grad_() for t in inputs_of(*size)]
    )


def test_opcheck():
    inputs = [t.requires_grad_() for t in inputs_of(2, 1, 5, 3, 4, 2, dtype=torch.float32)]
    torch.library.opcheck(torch.ops.soft_mm.gaussian_product, (*inputs, 'torch'))


def test_non_contiguous_inputs_and_gradients(tile):
    q = tokens(2, 35, 3, 8).transpose(1, 2).requires_grad_()
    k = tokens(2, 8, 3, 4).permute(0, 2, 3, 1).requires_grad_()
    v = tokens(2, 3, 5, 4).mT.requires_grad_()
    grad = tokens(2, 3, 5, 35).mT
    ours, theirs = (fn(q, k, v) for fn in (gaussian_product, reference))
    torch.testing.assert_close(ours, theirs)
    for got, expected in zip(
        torch.autograd.grad(ours, (q, k, v), grad), torch.autograd.grad(theirs, (q, k, v), grad)
    ):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize('offset', [0.0, 30.0])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
def test_computes_in_fp32(dtype, offset):
    """The output and every gradient have at most twice the error of the reference in fp32."""
    inputs = inputs_of(1, 2, 49, 130, 32, 16)
    inputs = [(t + offset * (i < 2)).to(dtype) for i, t in enumerate(inputs)]
    outputs = []
    for fn, kind in (
        (reference, torch.float64),
        (reference, torch.float32),
        (gaussian_product, dtype),
    ):
        leaves = [t.to(kind).requires_grad_() for t in inputs]
        out = fn(*leaves)
        out.sum().backward()
        outputs.append([out.detach(), *(leaf.grad for leaf in leaves)])
    assert outputs[2][0].dtype == torch.float32
    assert [t.dtype for t in outputs[2][1:]] == [dtype] * 3
    for i, (exact, plain, ours) in enumerate(zip(*outputs)):
        eps = torch.finfo(torch.float32 if i == 0 else dtype).eps
        rounding = 4 * eps * exact.abs().max()
        assert (ours - exact).abs().max() <= 2 * (plain - exact).abs().max() + rounding


def test_the_kernel_matrix_is_not_materialised():
    """No tensor outside the ops has M·N elements, and inside them the tiles respect their size."""
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes.extend(
                t.numel()
                for t in (out if isinstance(out, tuple) else (out,))
                if isinstance(t, Tensor)
            )
            return out

    inputs = [t.requires_grad_() for t in inputs_of(1, 1, 9000, 1000, 8, 8)]
    with Watch():
        gaussian_product(*inputs).sum().backward()
    assert max(sizes) <= 9000 * 8
    assert tiled._TiledKernel(*(t.detach()[0] for t in inputs[:2])).rows * 1000 <= tiled.TILE['cpu']


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r'\(2, 5, 4\), \(2, 3, 8\) and \(2, 3, 1\)'):
        gaussian_product(torch.zeros(2, 5, 4), torch.zeros(2, 3, 8), torch.zeros(2, 3, 1))
    with pytest.raises(ValueError, match='d and N'):
        gaussian_product(torch.zeros(2, 5, 4), torch.zeros(2, 3, 4), torch.zeros(2, 5, 4))


def test_compiles_without_a_graph_break():
    inputs = [t.requires_grad_() for t in inputs_of(1, 2, 20, 5, 32, 8, dtype=torch.float32)]
    compiled = torch.compile(gaussian_product, fullgraph=True, backend='aot_eager')
    torch.testing.assert_close(compiled(*inputs), gaussian_product(*inputs))

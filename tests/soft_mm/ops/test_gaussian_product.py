import pytest
import torch
from torch import Tensor

from soft_mm.ops import gaussian_product
from soft_mm.ops.extension import missing
from soft_mm.ops.gaussian_product import tiled
from soft_mm.ops.gaussian_product.reference import gaussian_product as reference

# B, h, M, N, d, e: the last two span several of the compiled op's tiles.
SIZES = [
    (2, 3, 49, 7, 32, 5),
    (1, 1, 1, 1, 1, 1),
    (2, 1, 17, 65, 9, 33),
    (1, 2, 200, 101, 32, 32),
    (3, 1, 99, 310, 40, 16),
]


def tokens(*shape: int, dtype=torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(sum(shape)))


def inputs_of(b, h, m, n, d, e, dtype=torch.float64) -> list[Tensor]:
    return [
        tokens(b, h, m, d, dtype=dtype) * d**-0.25,
        tokens(b, h, n, d, dtype=dtype) * d**-0.25,
        tokens(b, h, n, e, dtype=dtype),
    ]


@pytest.fixture(params=['tiles', 'one tile', 'extension'])
def backend(request, monkeypatch) -> str:
    """PyTorch with tiles of 16 rows, of which the last is smaller, or with one; the compiled op."""
    if request.param == 'extension':
        if missing():
            pytest.skip(missing())
        return 'extension'
    monkeypatch.setitem(tiled.TILE, 'cpu', 1 if request.param == 'tiles' else 2**21)
    return 'torch'


@pytest.mark.parametrize('size', SIZES)
def test_equals_the_reference_with_every_gradient(size, backend):
    inputs = [t.requires_grad_() for t in inputs_of(*size)]
    ours, theirs = gaussian_product(*inputs, backend), reference(*inputs)
    torch.testing.assert_close(ours, theirs)
    grad = tokens(*ours.shape)
    for got, expected in zip(
        torch.autograd.grad(ours, inputs, grad), torch.autograd.grad(theirs, inputs, grad)
    ):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize('size', [(2, 1, 5, 3, 4, 2), (1, 2, 3, 5, 4, 2)])
def test_gradcheck(size, backend):
    inputs = [t.requires_grad_() for t in inputs_of(*size)]
    assert torch.autograd.gradcheck(lambda *x: gaussian_product(*x, backend), inputs)


def test_opcheck(backend):
    inputs = [t.requires_grad_() for t in inputs_of(2, 1, 5, 3, 4, 2, dtype=torch.float32)]
    torch.library.opcheck(torch.ops.soft_mm.gaussian_product, (*inputs, backend))


def test_non_contiguous_inputs_and_gradients(backend):
    q = tokens(2, 35, 3, 8).transpose(1, 2).requires_grad_()
    k = tokens(2, 8, 3, 4).permute(0, 2, 3, 1).requires_grad_()
    v = tokens(2, 3, 5, 4).mT.requires_grad_()
    grad = tokens(2, 3, 5, 35).mT
    ours, theirs = gaussian_product(q, k, v, backend), reference(q, k, v)
    torch.testing.assert_close(ours, theirs)
    for got, expected in zip(
        torch.autograd.grad(ours, (q, k, v), grad), torch.autograd.grad(theirs, (q, k, v), grad)
    ):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize('offset', [0.0, 30.0])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
def test_computes_in_fp32(dtype, offset, backend):
    """The output and every gradient have at most twice the error of the reference in fp32."""
    inputs = inputs_of(1, 2, 49, 130, 32, 16)
    inputs = [(t + offset * (i < 2)).to(dtype) for i, t in enumerate(inputs)]
    outputs = []
    for fn, kind in (
        (reference, torch.float64),
        (reference, torch.float32),
        (lambda *x: gaussian_product(*x, backend), dtype),
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


def test_distances_from_zero_to_infinity(backend):
    """The exponential: 1 at distance 0, 0 far away, and a relative error of fp32 in between."""
    distance = torch.cat(
        (torch.zeros(1), torch.linspace(1e-3, 13, 500), torch.tensor([20.0, 1e18]))
    )
    q, k, v = distance[:, None], torch.zeros(1, 1), torch.ones(1, 1)
    out = gaussian_product(q, k, v, backend).squeeze(1)
    exact = (-0.5 * distance.double().square()).exp()
    # Rounding of the exponent, up to 85, is a relative error of the result.
    eps = torch.finfo(torch.float32).eps
    assert (out - exact).abs().le(4 * eps * (1 + 0.5 * distance.square()) * exact + 1e-37).all()
    assert out[0] == 1 and out[-1] == 0


def test_nan_stays_in_its_rows(backend):
    q, k, v = inputs_of(1, 1, 130, 50, 8, 4, dtype=torch.float32)
    q[0, 0, 7, 3] = torch.nan
    out = gaussian_product(q, k, v, backend)
    assert out[0, 0, 7].isnan().all()
    assert out.isnan().sum() == 4


@pytest.mark.parametrize('size', [(1, 2, 700, 201, 32, 32), (1, 2, 201, 700, 32, 32)])
def test_threads_change_no_bit(size, backend):
    if backend == 'torch':
        pytest.skip('the sums of PyTorch may depend on the number of threads')
    inputs = [t.requires_grad_() for t in inputs_of(*size, dtype=torch.float32)]
    results, threads = [], torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            out = gaussian_product(*inputs, backend)
            results.append([out, *torch.autograd.grad(out.square().sum(), inputs)])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_empty_batch(backend):
    inputs = [t.requires_grad_() for t in inputs_of(0, 3, 5, 7, 4, 2)]
    out = gaussian_product(*inputs, backend)
    assert out.shape == (0, 3, 5, 2)
    grads = torch.autograd.grad(out.sum(), inputs)
    assert [grad.shape for grad in grads] == [x.shape for x in inputs]


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
        gaussian_product(*inputs, 'torch').sum().backward()
    assert max(sizes) <= 9000 * 8
    assert tiled._TiledKernel(*(t.detach()[0] for t in inputs[:2])).rows * 1000 <= tiled.TILE['cpu']


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r'\(2, 5, 4\), \(2, 3, 8\) and \(2, 3, 1\)'):
        gaussian_product(torch.zeros(2, 5, 4), torch.zeros(2, 3, 8), torch.zeros(2, 3, 1))
    with pytest.raises(ValueError, match='d and N'):
        gaussian_product(torch.zeros(2, 5, 4), torch.zeros(2, 3, 4), torch.zeros(2, 5, 4))


def test_compiles_without_a_graph_break(backend):
    inputs = [t.requires_grad_() for t in inputs_of(1, 2, 20, 5, 32, 8, dtype=torch.float32)]
    compiled = torch.compile(gaussian_product, fullgraph=True, backend='aot_eager')
    torch.testing.assert_close(compiled(*inputs, backend), gaussian_product(*inputs, backend))


def test_the_compiled_op_checks_its_arguments():
    if missing():
        pytest.skip(missing())
    with pytest.raises(RuntimeError, match=r'v \(..., N, e\), got \[5, 4\], \[3, 4\] and \[5, 4\]'):
        torch.ops.soft_mm.gaussian_sums(torch.zeros(5, 4), torch.zeros(3, 4), torch.zeros(5, 4))
    with pytest.raises((RuntimeError, NotImplementedError), match="'Int'"):
        torch.ops.soft_mm.gaussian_sums(*(torch.zeros(3, 3).int() for _ in range(3)))


def test_the_compiled_op_reads_every_dtype():
    """It sums and returns fp32 or better."""
    if missing():
        pytest.skip(missing())
    q, k, v = (t.bfloat16() for t in inputs_of(1, 2, 200, 101, 32, 32))
    exact = torch.ops.soft_mm.gaussian_sums(q.float(), k.float(), v.float())
    assert torch.equal(torch.ops.soft_mm.gaussian_sums(q, k, v), exact)
    mixed = torch.ops.soft_mm.gaussian_sums(q, k.double(), v.float())
    assert mixed.dtype == torch.float64
    torch.testing.assert_close(mixed.float(), exact)

import pytest
import torch
from torch import Tensor

from soft_mm.ops import gaussian_kernel
from soft_mm.ops.gaussian_kernel.reference import gaussian_kernel as reference

SIZES = [(2, 3, 49, 7, 32), (1, 1, 1, 1, 1), (2, 1, 65, 33, 17)]  # B, h, N, m, d


def tokens(*shape: int, dtype=torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(sum(shape)))


def pair(b, h, n, m, d, dtype=torch.float64) -> tuple[Tensor, Tensor]:
    return tokens(b, h, n, d, dtype=dtype) * d**-0.25, tokens(b, h, m, d, dtype=dtype) * d**-0.25


@pytest.mark.parametrize('size', SIZES)
def test_equals_the_reference_with_every_gradient(size):
    inputs = [t.requires_grad_() for t in pair(*size)]
    ours, theirs = gaussian_kernel(*inputs), reference(*inputs)
    torch.testing.assert_close(ours, theirs)
    grad = tokens(*ours.shape)
    for got, expected in zip(
        torch.autograd.grad(ours, inputs, grad), torch.autograd.grad(theirs, inputs, grad)
    ):
        torch.testing.assert_close(got, expected)


def test_gradcheck():
    inputs = [t.requires_grad_() for t in pair(2, 1, 5, 3, 4)]
    assert torch.autograd.gradcheck(gaussian_kernel, inputs)


def test_opcheck():
    q, k = pair(2, 1, 5, 3, 4, dtype=torch.float32)
    torch.library.opcheck(
        torch.ops.soft_mm.gaussian_kernel, (q.requires_grad_(), k.requires_grad_(), 'torch')
    )


def test_non_contiguous_inputs_and_gradients():
    q = tokens(2, 5, 3, 8).transpose(1, 2).requires_grad_()
    k = tokens(2, 8, 3, 4).permute(0, 2, 3, 1).requires_grad_()
    assert not q.is_contiguous()
    assert not k.is_contiguous()
    ours = gaussian_kernel(q, k)
    torch.testing.assert_close(ours, reference(q, k))
    grad = tokens(*ours.shape).mT.contiguous().mT
    for got, expected in zip(
        torch.autograd.grad(ours, (q, k), grad), torch.autograd.grad(reference(q, k), (q, k), grad)
    ):
        torch.testing.assert_close(got, expected)


def error(fn, q: Tensor, k: Tensor, exact: Tensor) -> float:
    return (fn(q, k).double() - exact).abs().max().item()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize('offset', [0.0, 30.0])
def test_computes_in_fp32(dtype, offset):
    """The error is at most twice that of the reference in fp32, also far from the origin."""
    q, k = pair(2, 3, 49, 7, 32)
    q, k = (q + offset).to(dtype), (k + offset).to(dtype)
    exact = reference(q.double(), k.double())
    kernel = gaussian_kernel(q, k)
    assert kernel.dtype == torch.float32
    plain = error(reference, q.float(), k.float(), exact)
    assert error(gaussian_kernel, q, k, exact) <= 2 * max(plain, 32 * torch.finfo(torch.float).eps)


def test_autocast_changes_nothing():
    q, k = pair(1, 2, 20, 5, 32, dtype=torch.float32)
    with torch.autocast('cpu', torch.bfloat16):
        inside = gaussian_kernel(q, k)
    assert torch.equal(inside, gaussian_kernel(q, k))


def test_half_precision_gradients_keep_their_dtype():
    q, k = (t.requires_grad_() for t in pair(1, 1, 5, 3, 8, dtype=torch.bfloat16))
    gaussian_kernel(q, k).sum().backward()
    assert q.grad.dtype == k.grad.dtype == torch.bfloat16


def test_equal_tokens_give_one_up_to_rounding_and_never_more():
    k = 10 * tokens(1, 1, 40, 32, dtype=torch.float32)
    kernel = gaussian_kernel(k, k)
    assert kernel.max() <= 1
    rounding = 3 * torch.finfo(torch.float32).eps * k.square().sum(-1).max().item()
    assert kernel.diagonal(dim1=-2, dim2=-1).min() >= 1 - rounding


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r'\(2, 5, 4\) and \(2, 3, 8\)'):
        gaussian_kernel(torch.zeros(2, 5, 4), torch.zeros(2, 3, 8))
    with pytest.raises(ValueError, match='leading dimensions'):
        gaussian_kernel(torch.zeros(2, 5, 4), torch.zeros(1, 3, 4))


def test_meta_tensors():
    assert gaussian_kernel(
        torch.empty(2, 5, 4, device='meta'), torch.empty(2, 3, 4, device='meta')
    ).shape == (2, 5, 3)


def test_compiles_without_a_graph_break():
    q, k = pair(1, 2, 20, 5, 32, dtype=torch.float32)
    compiled = torch.compile(gaussian_kernel, fullgraph=True, backend='aot_eager')
    torch.testing.assert_close(compiled(q, k), gaussian_kernel(q, k))

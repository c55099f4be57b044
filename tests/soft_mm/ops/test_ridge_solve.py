import pytest
import torch
from torch import Tensor

from soft_mm.ops import gaussian_kernel, ridge_solve
from soft_mm.ops.ridge_solve.reference import ridge_solve as reference


def system(*shape: int, dtype=torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(sum(shape))
    points = torch.randn(*shape, 6, dtype=torch.float64, generator=generator)
    v = torch.randn(*shape, 5, dtype=torch.float64, generator=generator)
    return gaussian_kernel(points, points).to(dtype), v.to(dtype)


@pytest.mark.parametrize('shape', [(2, 3, 7), (1, 1), (1, 2, 101)])
def test_equals_the_reference_with_every_gradient(shape):
    leaves = [t.requires_grad_() for t in system(*shape)]
    ours, theirs = ridge_solve(*leaves), reference(*leaves)
    torch.testing.assert_close(ours, theirs)
    grad = torch.randn(ours.shape, dtype=ours.dtype, generator=torch.Generator().manual_seed(0))
    for got, expected in zip(
        torch.autograd.grad(ours, leaves, grad), torch.autograd.grad(theirs, leaves, grad)
    ):
        torch.testing.assert_close(got, expected)


def test_gradcheck():
    p, v = (t.requires_grad_() for t in system(2, 5))
    assert torch.autograd.gradcheck(lambda p, v: ridge_solve((p + p.mT) / 2, v, 0.3), (p, v))


def test_opcheck():
    p, v = (t.requires_grad_() for t in system(2, 5, dtype=torch.float32))
    torch.library.opcheck(torch.ops.soft_mm.ridge_solve, (p, v, 0.3))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
def test_computes_in_fp32(dtype):
    """The error is at most twice that of the reference in fp32."""
    p, v = system(2, 101, dtype=dtype)
    out = ridge_solve(p, v)
    assert out.dtype == torch.float32
    exact = reference(p.double(), v.double())
    plain = (reference(p.float(), v.float()) - exact).abs().max()
    rounding = 4 * torch.finfo(torch.float32).eps * exact.abs().max()
    assert (out - exact).abs().max() <= 2 * plain + rounding
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(ridge_solve(p, v), out)


@pytest.mark.parametrize('m', [2, 49, 256, 1050])
def test_singular_stays_finite(m):
    """Identical landmarks: the vector of ones is an eigenvector with eigenvalue m."""
    p, v = torch.ones(2, m, m).requires_grad_(), torch.ones(2, m, 3).requires_grad_()
    out = ridge_solve(p, v)
    grads = torch.autograd.grad(out.sum(), (p, v))
    assert all(grad.isfinite().all() for grad in grads)
    torch.testing.assert_close(out, torch.full_like(out, 1 / (m + 0.01)), rtol=1e-4, atol=3e-5)


def test_an_indefinite_matrix_gives_nan():
    p = torch.eye(3).repeat(2, 1, 1)
    p[0, 1, 1] = -1.0
    out = ridge_solve(p, torch.ones(2, 3, 1))
    assert out[0].isnan().all()
    assert out[1].isfinite().all()


def test_arguments_are_checked():
    with pytest.raises(ValueError, match=r'\(3, 3\) and \(4, 1\)'):
        ridge_solve(torch.eye(3), torch.zeros(4, 1))
    with pytest.raises(ValueError, match='ridge must be greater than 0, got 0'):
        ridge_solve(torch.eye(3), torch.zeros(3, 1), ridge=0)

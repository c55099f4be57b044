import pytest
import torch
from torch import Tensor

from soft_mm.ops import gaussian_kernel, newton_inverse
from soft_mm.ops.newton_inverse.reference import newton_inverse as reference


def matrix(*shape: int, dtype=torch.float64) -> Tensor:
    """Symmetric and positive definite: a Gaussian kernel plus 0.3 on its diagonal."""
    generator = torch.Generator().manual_seed(sum(shape))
    points = torch.randn(*shape, 6, dtype=torch.float64, generator=generator)
    eye = torch.eye(shape[-1], dtype=torch.float64)
    return (gaussian_kernel(points, points) + 0.3 * eye).to(dtype)


def alpha_of(p: Tensor) -> Tensor:
    return 1.8 / p.detach().sum(-1).amax(-1)[..., None, None].square()


@pytest.mark.parametrize('shape', [(2, 3, 7), (1, 1), (1, 2, 49), (3, 33)])
def test_inverts(shape):
    p = matrix(*shape)
    torch.testing.assert_close(newton_inverse(p), torch.linalg.inv(p))


@pytest.mark.parametrize('iterations', [0, 1, 5])
def test_equals_the_reference_after_few_iterations(iterations):
    p = matrix(2, 3, 17)
    torch.testing.assert_close(
        newton_inverse(p, alpha_of(p), iterations),
        reference(p, alpha_of(p), iterations),
        rtol=1e-12,
        atol=1e-12,
    )


def test_implicit_gradient_equals_the_unrolled_gradient():
    p = matrix(2, 3, 17).requires_grad_()
    grad = torch.randn(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(0))
    (implicit,) = torch.autograd.grad(newton_inverse(p, alpha_of(p)), p, grad)
    (unrolled,) = torch.autograd.grad(reference(p, alpha_of(p)), p, grad)
    torch.testing.assert_close(implicit, unrolled)


def test_gradcheck():
    p = matrix(2, 5).requires_grad_()
    alpha = alpha_of(p)
    assert torch.autograd.gradcheck(lambda p: newton_inverse(p, alpha), p)


def test_opcheck():
    p = matrix(2, 5, dtype=torch.float32).requires_grad_()
    torch.library.opcheck(torch.ops.soft_mm.newton_inverse, (p, alpha_of(p), 20, True, 'torch'))
    torch.library.opcheck(torch.ops.soft_mm.newton_inverse, (p, alpha_of(p), 0, False, 'torch'))


def test_non_contiguous():
    p = matrix(2, 7)
    strided = torch.full((2, 7, 14), torch.nan, dtype=p.dtype)[..., ::2].copy_(p)
    assert not strided.is_contiguous()
    torch.testing.assert_close(newton_inverse(strided), torch.linalg.inv(p))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
def test_computes_in_fp32(dtype):
    """The error is at most twice that of the reference in fp32."""
    p = matrix(2, 2, 33).to(dtype)
    inverse = newton_inverse(p)
    assert inverse.dtype == torch.float32
    exact = reference(p.double(), alpha_of(p.double()))
    plain = (reference(p.float(), alpha_of(p.float())) - exact).abs().max()
    assert (inverse - exact).abs().max() <= 2 * plain
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(newton_inverse(p), inverse)


@pytest.mark.parametrize('m', [2, 49, 256])
def test_singular_stays_finite(m):
    """Identical landmarks: K2 is all ones and has rank one; its pseudo-inverse is K2 / m²."""
    p = torch.ones(2, m, m).requires_grad_()
    inverse = newton_inverse(p)
    (grad,) = torch.autograd.grad(inverse.sum(), p)
    assert grad.isfinite().all()
    torch.testing.assert_close(inverse, p.detach() / m**2, atol=1e-4, rtol=1e-3)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match=r'\(3, 4\)'):
        newton_inverse(torch.zeros(3, 4))
    with pytest.raises(ValueError, match='at least 0, got -1'):
        newton_inverse(torch.eye(3), iterations=-1)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_stops_once_converged(dtype):
    p = matrix(2, 3, 49, dtype=dtype)
    stopped, complete = (
        newton_inverse(p, iterations=1000, until_converged=until_converged)
        for until_converged in (True, False)
    )
    torch.testing.assert_close(
        stopped,
        complete,
        rtol=1e-5 if dtype == torch.float32 else 1e-13,
        atol=1e-6 if dtype == torch.float32 else 1e-14,
    )


def test_does_not_stop_for_a_singular_matrix():
    p = matrix(1, 9)
    p = torch.block_diag(p[0], torch.ones(3, 3, dtype=p.dtype))[None]
    torch.testing.assert_close(
        newton_inverse(p, iterations=9, until_converged=True),
        reference(p, alpha_of(p), 9),
        rtol=1e-12,
        atol=1e-12,
    )

"""Nyströmformer's iteration for the pseudo-inverse."""

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from soft_mm.ops import pseudo_inverse
from soft_mm.ops.pseudo_inverse.reference import starting_point


def matrices(*shape: int, seed: int = 0) -> Tensor:
    """Rows that sum to 1, as those of softmax."""
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(*shape, generator=generator, dtype=torch.float64)).softmax(-1)


def test_converges_to_the_pseudo_inverse():
    a = torch.eye(9).double() + 0.3 * matrices(2, 3, 9, 9)
    inverse = pseudo_inverse(a)
    torch.testing.assert_close(inverse, torch.linalg.pinv(a))
    # One scale for each matrix, so that the rest of the batch has no influence.
    torch.testing.assert_close(pseudo_inverse(a[:1]), inverse[:1])
    singular = torch.zeros(9, 9).double()
    singular[:4, :4] = a[0, 0, :4, :4]
    torch.testing.assert_close(pseudo_inverse(singular), torch.linalg.pinv(singular))


@pytest.mark.parametrize('iterations', [1, 6])
@pytest.mark.parametrize('m', [1, 9, 33])
def test_every_gradient_equals_that_of_the_reference(m, iterations):
    """Also where the iteration is far from converged."""
    a = matrices(2, 3, m, m).requires_grad_()
    ours, theirs = (pseudo_inverse(a, iterations, backend) for backend in ('torch', 'reference'))
    torch.testing.assert_close(ours, theirs)
    grad = matrices(2, 3, m, m, seed=1).mT
    got, expected = (torch.autograd.grad(out, a, grad)[0] for out in (ours, theirs))
    torch.testing.assert_close(got, expected)


def test_gradcheck():
    """Without ties of the rows' sums, where the scale has no derivative."""
    scales = torch.tensor([1.0, 0.8, 0.7, 0.9], dtype=torch.float64)[:, None]
    assert torch.autograd.gradcheck(pseudo_inverse, (scales * matrices(2, 4, 4)).requires_grad_())


def test_is_a_valid_op():
    a = matrices(2, 3, 5, 5)
    arguments = a.requires_grad_(), starting_point(a.detach()).requires_grad_(), 6
    opcheck(torch.ops.soft_mm.pseudo_inverse, arguments)


def test_identical_landmarks_stay_finite():
    """Matrices of rank 1, of which the pseudo-inverse exists: all entries are 1/m."""
    a = torch.full((1, 49, 49), 1 / 49).requires_grad_()
    out = pseudo_inverse(a)
    torch.testing.assert_close(out, a.detach())
    out.sum().backward()
    assert a.grad.isfinite().all()


def test_arguments_are_checked():
    with pytest.raises(ValueError, match=r'a must be \(\.\.\., m, m\), got \(2, 3\)'):
        pseudo_inverse(torch.zeros(2, 3))
    with pytest.raises(ValueError, match='iterations must be at least 1, got 0'):
        pseudo_inverse(torch.eye(2), 0)
    with pytest.raises(ValueError, match="backend .*'fast'"):
        pseudo_inverse(torch.eye(2), backend='fast')

import importlib
from collections import Counter, defaultdict
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from soft_mm.ops import gaussian_kernel, newton_inverse, newton_solve
from soft_mm.ops.backend import HAS_TRITON
from soft_mm.ops.newton_inverse.implicit import iterate
from soft_mm.ops.newton_solve import rational
from soft_mm.ops.newton_solve.reference import newton_solve as reference


def system(*shape: int, spread: float, dtype=torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """K2 of random landmarks scaled by ``spread``, values, and SOFT's alpha."""
    generator = torch.Generator().manual_seed(sum(shape))
    points = spread * torch.randn(*shape, 6, dtype=torch.float64, generator=generator)
    v = torch.randn(*shape, 5, dtype=torch.float64, generator=generator)
    p = gaussian_kernel(points, points)
    alpha = 1.8 / p.sum(-1).amax(-1)[..., None, None].square()
    return tuple(t.to(dtype) for t in (p, v, alpha))


# Bound of the error of the rational function, relative for every eigenvalue and so for the norm.
FUNCTION_ERROR = 2.2e-6


def assert_equal(ours: Tensor, exact: Tensor) -> None:
    """Compare up to the error of the rational function."""
    assert (ours - exact).norm() <= FUNCTION_ERROR * exact.norm()


@pytest.fixture(params=[1e9, 0], ids=['iterated', 'rational'])
def algorithm(request, monkeypatch):
    monkeypatch.setitem(rational.MIN_SIZE, 'torch', request.param)


# From distant landmarks, whose K2 is nearly I, to identical ones; 20 iterations do not converge for
# close landmarks.
@pytest.mark.parametrize('spread', [3.0, 0.6, 0.1, 0.0])
@pytest.mark.parametrize('shape', [(2, 3, 7), (1, 1), (1, 2, 201)])
@pytest.mark.parametrize('backend', [None, 'standard'])
def test_equals_the_iteration(algorithm, backend, shape, spread):
    inputs = system(*shape, spread=spread)
    assert_equal(newton_solve(*inputs, backend=backend), reference(*inputs))


def landmarks(case: str) -> Tensor:
    """Sets of 400 landmarks that the paper's iteration inverts, damps, or cannot tell apart."""
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(2, 400, 32, dtype=torch.float64, generator=generator)
    if case == 'random':
        return 32**-0.5 * points
    if case == 'distant':
        return points
    if case == 'smooth':  # landmarks of an image whose features change slowly
        side = torch.linspace(-1, 1, 20, dtype=torch.float64)
        grid = torch.stack(torch.meshgrid(side, side, indexing='ij'), -1).flatten(0, 1)
        return torch.sin(grid @ points[:, :2])
    equal = {'half equal': 200, 'all equal': 400}[case]
    return torch.cat((points[:, :1].expand(-1, equal, -1), points[:, equal:]), 1)


@pytest.mark.parametrize('ridge', [0.0, 0.01])
@pytest.mark.parametrize('case', ['random', 'distant', 'smooth', 'half equal', 'all equal'])
@pytest.mark.parametrize('backend', [None, 'standard'])
def test_fp32_is_as_exact_as_the_iteration(backend, case, ridge):
    """The error is a small multiple of that of 20 iterations in fp32, or of the function's."""
    points = landmarks(case)
    p = gaussian_kernel(points, points) + ridge * torch.eye(400, dtype=torch.float64)
    # As in the attention, values that the kernel sums, so that equal landmarks have equal rows.
    generator = torch.Generator().manual_seed(1)
    tokens, v = torch.randn(2, 2, 900, 32, dtype=torch.float64, generator=generator)
    v = gaussian_kernel(points, tokens * points.std()) @ v
    p, v, alpha = (x.float() for x in (p, v, 1.8 / p.sum(-1).amax(-1)[..., None, None].square()))
    exact = reference(p.double(), v.double(), alpha.double())
    iterated = reference(p, v, alpha).double() - exact
    ours = newton_solve(p, v, alpha, backend=backend).double() - exact
    assert ours.norm() <= 4 * max(iterated.norm(), FUNCTION_ERROR * exact.norm())


@pytest.mark.parametrize('backend', [None, 'standard'])
def test_null_space_of_equal_landmarks(backend):
    """The exact result is 0; what remains is rounding, times the condition of P + δI."""
    p = torch.ones(1, 256, 256)
    v = torch.randn(1, 256, 8, generator=torch.Generator().manual_seed(0))
    v -= v.mean(1, keepdim=True)
    alpha = torch.full((1, 1, 1), 1.8 / 256**2)
    root = (alpha * 2**20).sqrt()
    condition = 256 * root / rational.POLE + 1
    bound = root * condition * torch.finfo(torch.float32).eps * v.norm()
    assert newton_solve(p, v, alpha, backend=backend).norm() <= bound


def test_the_tests_cover_damped_inverses():
    """For the systems above with a spread of 0.1, the damped inverse is far from the exact one."""
    p, v, alpha = system(2, 201, spread=0.1)
    assert (p @ newton_solve(p, v, alpha) - v).abs().max() > 0.1


@pytest.mark.parametrize('iterations', [0, 1, 5, 19, 20, 22])
@pytest.mark.parametrize('backend', [None, 'standard'])
def test_other_numbers_of_iterations(backend, iterations):
    inputs = system(2, 201, spread=0.6)
    ours = newton_solve(*inputs, iterations, backend=backend)
    assert_equal(ours, reference(*inputs, iterations))


def test_implicit_gradients(algorithm):
    p, v, alpha = system(2, 3, 17, spread=0.6)
    leaves = p.requires_grad_(), v.requires_grad_()
    grad = torch.randn(v.shape, dtype=v.dtype, generator=torch.Generator().manual_seed(0))
    ours = torch.autograd.grad(newton_solve(*leaves, alpha), leaves, grad)
    inverse = newton_inverse(*leaves[:1], alpha)
    theirs = torch.autograd.grad(inverse @ v, leaves, grad)
    for got, expected in zip(ours, theirs):
        assert_equal(got, expected)


def test_gradcheck(algorithm):
    p, v, alpha = system(2, 5, spread=3.0)
    symmetric = p.clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda p, v: newton_solve((p + p.mT) / 2, v, alpha),
        (symmetric, v.requires_grad_()),
        eps=1e-4,
        atol=1e-4,
    )


def test_opcheck():
    p, v, alpha = system(2, 5, spread=3.0, dtype=torch.float32)
    leaves = p.requires_grad_(), v.requires_grad_()
    torch.library.opcheck(torch.ops.soft_mm.newton_solve, (*leaves, 2**10 * alpha, False))


def test_batches_and_strides(algorithm):
    p, v, alpha = system(3, 17, spread=0.6)
    strided = torch.full((3, 17, 34), torch.nan, dtype=p.dtype)[..., ::2].copy_(p)
    out = newton_solve(strided, v.mT.contiguous().mT, alpha)
    for i in range(3):
        torch.testing.assert_close(out[i], newton_solve(p[i], v[i], alpha[i]))
    shared = alpha.amax().reshape(1, 1, 1)
    assert_equal(newton_solve(p, v, shared), reference(p, v, shared))


@pytest.mark.parametrize('m', [2, 49, 256])
def test_singular_stays_finite(m):
    """Identical landmarks: K2 is all ones and has rank one; its pseudo-inverse is K2 / m²."""
    p, v = torch.ones(2, m, m).requires_grad_(), torch.ones(2, m, 3).requires_grad_()
    out = newton_solve(p, v, torch.tensor(1.8 / m**2))
    grads = torch.autograd.grad(out.sum(), (p, v))
    assert all(grad.isfinite().all() for grad in grads)
    torch.testing.assert_close(out, torch.full_like(out, 1 / m))


def test_nan_does_not_spread_to_other_matrices():
    p, v, alpha = system(2, 201, spread=0.6, dtype=torch.float32)
    p[0, 3, 4] = torch.nan
    out = newton_solve(p, v, alpha)
    assert out[0].isnan().any()
    assert out[1].isfinite().all()


def test_half_precision():
    p, v, alpha = system(2, 201, spread=0.6, dtype=torch.bfloat16)
    with torch.autocast('cpu', torch.bfloat16):
        out = newton_solve(p, v, alpha)
    assert out.dtype == torch.float32
    assert torch.equal(out, newton_solve(p.float(), v.float(), alpha.float()))


def test_error_bound_of_the_rational_function():
    t = torch.logspace(-6, 6, 5000, dtype=torch.float64)
    rho = rational.POLE / (rational.POLE + t)
    g = sum(
        c * torch.special.chebyshev_polynomial_t(2 * rho - 1, n)
        for n, c in enumerate(rational.coefficients())
    )
    h = -torch.expm1(-t.square()) / t
    assert (g * rho * (1 - rho) / h - 1).abs().max() < FUNCTION_ERROR


def test_the_backward_pass_factors_nothing(monkeypatch):
    p, v, alpha = system(2, 201, spread=0.6, dtype=torch.float32)
    out = newton_solve(p.requires_grad_(), v.requires_grad_(), alpha)
    monkeypatch.delattr(torch.linalg, 'cholesky_ex')
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(out.sum(), (p, v)))


KERNELS = dict(
    _iterate='newton_inverse',
    **dict.fromkeys(('_shift', '_panel', '_sweep', '_complement', '_product'), 'newton_solve'),
)


class Launches(TorchDispatchMode):
    """Counts operators, and in place of Triton's kernels their launches."""

    def __init__(self, monkeypatch) -> None:
        super().__init__()
        self.counts = Counter()
        for name, op in KERNELS.items():
            module = importlib.import_module(f'soft_mm.ops.{op}.triton_kernels')
            monkeypatch.setattr(module, name, defaultdict(lambda name=name: self._launch(name)))

    def _launch(self, name: str):
        return lambda *args, **options: self.counts.update([name])

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.skipif(not HAS_TRITON, reason='there is no Triton, or one before 3.4')
@pytest.mark.parametrize('backend', ['triton', 'torch'])
@pytest.mark.parametrize('m', [49, 100, 160, 1050])
def test_no_synchronisation(m, backend, monkeypatch):
    """Of tensors without data, a number that the host reads raises. Counts the launches, too."""
    for module, op, body in (
        (rational, '_newton_solve', rational.forward),
        (rational, 'newton_solve_backward', rational.backward),
        (importlib.import_module('soft_mm.ops.newton_inverse'), 'implicit_newton_inverse', iterate),
    ):
        monkeypatch.setattr(module, op, body)
    monkeypatch.setattr(torch.cuda, 'device_of', lambda x: nullcontext())
    with FakeTensorMode(), Launches(monkeypatch) as launches:
        p, v, alpha = (torch.empty(2, *shape, device='cuda') for shape in ((m, m), (m, 32), (1, 1)))
        newton_solve(p, v, alpha, backend=backend)
        forward, launches.counts = launches.counts, Counter()
        rational.backward(v, p, p, alpha, backend == 'triton')
    waits = {'item', '_local_scalar_dense', 'nonzero', 'is_nonzero', 'equal'}
    assert not waits & (forward.keys() | launches.counts.keys())
    kernels = {name: n for name, n in forward.items() if name in KERNELS}
    steps = -(-m // 64)
    if backend == 'torch':
        assert not kernels
    elif m == 49:
        assert kernels == {'_iterate': 1}
    else:
        expected = dict(_shift=1, _panel=steps, _sweep=steps, _complement=1, _product=32)
        assert kernels == expected
    assert launches.counts['_product' if backend == 'triton' else 'baddbmm'] == 32


def test_arguments_are_checked():
    with pytest.raises(ValueError, match=r'\(3, 3\) and \(4, 1\)'):
        newton_solve(torch.eye(3), torch.zeros(4, 1), torch.tensor(1.0))
    with pytest.raises(ValueError, match='at least 0, got -1'):
        newton_solve(torch.eye(3), torch.zeros(3, 1), torch.tensor(1.0), iterations=-1)

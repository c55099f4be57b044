import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from soft_mm.ops import nystrom_attention
from soft_mm.ops.backend import HAS_TRITON
from soft_mm.ops.extension import missing
from soft_mm.ops.gaussian_kernel.reference import gaussian_kernel
from soft_mm.ops.newton_inverse.reference import newton_inverse
from soft_mm.ops.newton_solve import rational
from soft_mm.ops.nystrom_attention.landmark_solve import landmark_solve
from soft_mm.ops.nystrom_attention.reference import attention_rows
from soft_mm.ops.nystrom_attention.solvers import solve


def formula(
    q: Tensor,
    v: Tensor,
    landmarks: Tensor,
    sym_norm: bool = False,
    solver: str = 'newton',
    alpha_scope: str = 'matrix',
) -> Tensor:
    """The papers' attention, one matrix at a time."""
    k1, k2 = gaussian_kernel(q, landmarks), gaussian_kernel(landmarks, landmarks)
    largest_norm = k2.sum(-1).max()
    out = torch.empty_like(v)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            matrix = k2[b, h]
            eye = torch.eye(len(matrix), dtype=matrix.dtype)
            norm = matrix.sum(-1).max() if alpha_scope == 'matrix' else largest_norm
            scale = torch.diag(matrix.sum(-1) ** -0.5) if sym_norm else eye
            if solver == 'ridge':
                inverse = torch.linalg.inv(matrix + 0.01 * eye)
            elif sym_norm:
                alpha = 2 / norm**2
                for _ in range(10):
                    every = [matrix] if alpha_scope == 'matrix' else k2.flatten(0, 1)
                    sums = [
                        (torch.eye(len(p), dtype=p.dtype) - alpha * p @ p).abs().sum(0).max()
                        for p in every
                    ]
                    if max(sums) <= 1.01:
                        break
                    alpha = alpha / 2
                inverse = newton_inverse(matrix, alpha)
            else:
                inverse = newton_inverse(matrix + 0.01 * eye, 0.9 * 2 / norm**2)
            out[b, h] = k1[b, h] @ scale @ inverse @ scale @ k1[b, h].mT @ v[b, h]
    return out


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 3, 35, 8), (2, 3, 35, 8), (2, 3, 9, 8)
    q, v, landmarks = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    # Matrices of different scales, so that one alpha per batch differs from one per matrix.
    return q * 0.6, v, landmarks * torch.tensor([0.2, 0.6, 1.0]).double().view(1, 3, 1, 1)


@pytest.fixture(params=['torch', 'reference', 'extension'])
def backend(request) -> str:
    if request.param == 'extension' and missing():
        pytest.skip(missing())
    return request.param


@pytest.mark.parametrize('alpha_scope', ['matrix', 'batch'])
@pytest.mark.parametrize('solver', ['newton', 'iteration', 'ridge'])
@pytest.mark.parametrize('sym_norm', [False, True])
def test_equals_the_formula(inputs, sym_norm, solver, alpha_scope, backend, monkeypatch):
    monkeypatch.setitem(rational.MIN_SIZE, 'torch', 5)
    # The rational function has a relative error of 2e-6, which the kernel matrix amplifies.
    atol = 2e-5 if solver == 'newton' and backend != 'reference' else 1e-6
    torch.testing.assert_close(
        nystrom_attention(*inputs, sym_norm, solver, alpha_scope, backend),
        formula(*inputs, sym_norm, solver, alpha_scope),
        rtol=1e-6,
        atol=atol,
    )


@pytest.mark.parametrize('alpha_scope', ['matrix', 'batch'])
@pytest.mark.parametrize('solver', ['newton', 'iteration', 'ridge'])
@pytest.mark.parametrize('sym_norm', [False, True])
def test_rows_times_values_equal_the_formula(inputs, sym_norm, solver, alpha_scope, backend):
    q, v, landmarks = inputs
    queries = [30, 2, 2]
    rows = attention_rows(q[:, :, queries], q, landmarks, sym_norm, solver, alpha_scope, backend)
    assert rows.shape == (2, 3, 3, 35)
    expected = formula(*inputs, sym_norm, solver, alpha_scope)[:, :, queries]
    torch.testing.assert_close(rows @ v, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('solver', ['newton', 'iteration', 'ridge'])
@pytest.mark.parametrize('sym_norm', [False, True])
def test_every_gradient_equals_the_formulas(inputs, sym_norm, solver, backend):
    """The iteration converges here, so its implicit gradient equals the one through every step."""
    q, v, landmarks = inputs
    leaves = [t.requires_grad_() for t in (q, v, 2 * landmarks[:, 2:].expand(-1, 3, -1, -1))]
    ours = nystrom_attention(*leaves, sym_norm, solver, backend=backend)
    grad = torch.randn(ours.shape, dtype=ours.dtype, generator=torch.Generator().manual_seed(1))
    theirs = formula(*leaves, sym_norm, solver)
    for got, expected in zip(
        torch.autograd.grad(ours, leaves, grad), torch.autograd.grad(theirs, leaves, grad)
    ):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('min_size', [5, 128])
@pytest.mark.parametrize('sym_norm', [False, True])
def test_landmark_solve_equals_its_steps(inputs, sym_norm, min_size, monkeypatch):
    """Iterated or rational, converged or not, with the gradient of the same implicit formula."""
    monkeypatch.setitem(rational.MIN_SIZE, 'torch', min_size)
    landmarks, v = (t.detach().requires_grad_() for t in (inputs[2], inputs[1][:, :, :9]))
    k2 = gaussian_kernel(landmarks, landmarks)
    expected = solve(k2, v, sym_norm, 'newton', 'matrix', 'torch')
    ours = landmark_solve(landmarks, v, sym_norm, 'torch')[0]
    torch.testing.assert_close(ours, expected)
    grad = torch.randn(v.shape, dtype=v.dtype, generator=torch.Generator().manual_seed(1))
    for got, wanted in zip(
        torch.autograd.grad(ours, (landmarks, v), grad),
        torch.autograd.grad(expected, (landmarks, v), grad),
    ):
        torch.testing.assert_close(got, wanted)
    torch.library.opcheck(landmark_solve, (landmarks, v, sym_norm, 'torch'))


def test_k2_of_distant_landmarks_is_the_identity(backend):
    landmarks = 7 * torch.eye(8)[None, None, :3]  # exp(-49) = 5e-22
    out = nystrom_attention(landmarks, torch.ones(1, 1, 3, 8), landmarks, True, backend=backend)
    torch.testing.assert_close(out, torch.ones(1, 1, 3, 8))


@pytest.mark.parametrize('solver', ['newton', 'iteration', 'ridge'])
@pytest.mark.parametrize('sym_norm', [False, True])
def test_identical_landmarks_stay_finite(inputs, sym_norm, solver, backend, monkeypatch):
    monkeypatch.setitem(rational.MIN_SIZE, 'torch', 5)
    q, v, landmarks = (t.float() for t in inputs)
    leaves = [q.requires_grad_(), v.requires_grad_(), torch.zeros_like(landmarks).requires_grad_()]
    out = nystrom_attention(*leaves, sym_norm, solver, backend=backend)
    out.square().sum().backward()
    assert out.isfinite().all()
    assert all(leaf.grad.isfinite().all() for leaf in leaves)


@pytest.mark.parametrize('solver', ['newton', 'iteration', 'ridge'])
def test_autocast_changes_nothing(inputs, solver, backend, monkeypatch):
    monkeypatch.setitem(rational.MIN_SIZE, 'torch', 5)
    leaves = [t.float().requires_grad_() for t in inputs]
    outs = []
    for enabled in True, False:
        with torch.autocast('cpu', torch.bfloat16, enabled=enabled):
            outs.append(nystrom_attention(*leaves, True, solver, backend=backend))
    torch.testing.assert_close(*outs)
    for got, expected in zip(*(torch.autograd.grad(out.square().sum(), leaves) for out in outs)):
        torch.testing.assert_close(got, expected)


@pytest.mark.skipif(not HAS_TRITON, reason='there is no Triton, or one before 3.4')
def test_on_a_gpu_no_op_copies_half_precision_tokens():
    """Of the size of the tokens, only the output is allocated, in the layout of the queries."""
    large = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            large.extend([out] if isinstance(out, Tensor) and out.numel() >= q.numel() else [])
            return out

    with FakeTensorMode():
        q, v = (torch.empty(2, 3136, 2, 32, device='cuda').bfloat16() for _ in range(2))
        q, v = q.transpose(1, 2), v.transpose(1, 2)
        landmarks = torch.empty(2, 2, 49, 32, device='cuda').bfloat16()
        with Watch():
            out = nystrom_attention(q, v, landmarks, True, dtype=torch.bfloat16)
    assert len(large) == 1
    assert out.dtype == torch.bfloat16 and out.stride() == q.stride()


def test_arguments_are_checked(inputs):
    with pytest.raises(ValueError, match=r"solver must be one of \['newton', .*'lu'"):
        nystrom_attention(*inputs, solver='lu')
    with pytest.raises(ValueError, match=r"\['matrix', 'batch'\], got 'image'"):
        nystrom_attention(*inputs, alpha_scope='image')

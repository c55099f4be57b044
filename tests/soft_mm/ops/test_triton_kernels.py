"""Triton's ways of the ops against their references: under the interpreter, or on a GPU."""

import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from soft_mm.models.layers import InLineAttention, SOFTAttention
from soft_mm.ops import (
    dynamic_conv,
    gaussian_kernel,
    gaussian_product,
    inline_self_attention,
    newton_inverse,
    newton_solve,
    nystrom_attention,
)
from soft_mm.ops.backend import HAS_TRITON, set_backend
from soft_mm.ops.dynamic_conv.reference import dynamic_conv as reference_conv
from soft_mm.ops.gaussian_kernel.reference import gaussian_kernel as reference_kernel
from soft_mm.ops.gaussian_product.reference import gaussian_product as reference_product
from soft_mm.ops.newton_inverse.reference import newton_inverse as reference_inverse
from soft_mm.ops.newton_solve.rational import POLE
from soft_mm.ops.nystrom_attention.scale import newton_scale
from soft_mm.ops.nystrom_attention.solvers import solve_landmarks
from soft_mm.ops.windows import Windows

ROOT = Path(__file__).parents[3]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# B, h, M, N, d, e: odd sizes; sums that are split; one token; and on a GPU the first stages.
PRODUCTS = [
    (2, 3, 65, 35, 32, 17),
    (1, 2, 7, 1100, 16, 16),
    (1, 1, 1, 1, 1, 1),
    (2, 1, 70, 33, 64, 64),
]
LARGE_PRODUCTS = [
    (1, 2, 67200, 1050, 32, 32),
    (1, 2, 1050, 67200, 32, 32),
    (32, 10, 196, 49, 32, 32),
    (1, 4, 1050, 16800, 64, 64),
]
MAPS = [(2, 5, 7, 3), (1, 1, 1, 1), (3, 9, 4, 70)]  # B, H, W, C
LARGE_MAPS = [(2, 200, 336, 64), (64, 14, 14, 320), (65_600, 7, 7, 8)]


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """New tensors hold NaN until something is written to them."""
    monkeypatch.setattr(torch.utils.deterministic, 'fill_uninitialized_memory', True)
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def tokens(*shape: int, device: str = 'cpu') -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator).to(device)


def among_nan(x: Tensor) -> Tensor:
    """A view of the same numbers whose neighbours in memory are NaN."""
    wide = torch.full((*x.shape[:-2], x.shape[-2] + 2, 3 * x.shape[-1]), torch.nan).to(x)
    wide[..., 1:-1, x.shape[-1] : 2 * x.shape[-1]] = x
    return wide[..., 1:-1, x.shape[-1] : 2 * x.shape[-1]]


def results(fn, inputs: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The output and every gradient, in fp64."""
    leaves = [
        among_nan(x.to(dtype)).detach().requires_grad_()
        if x.ndim > 1
        else x.to(dtype).detach().requires_grad_()
        for x in inputs
    ]
    out = fn(*leaves)
    grad = tokens(*out.shape).to(out) / out.numel() ** 0.5
    return [out.detach().double(), *(x.double() for x in torch.autograd.grad(out, leaves, grad))]


def check(fused, plain, inputs: list[Tensor], dtype: torch.dtype) -> None:
    """The error is at most twice that of plain torch in the same dtype, against fp64."""
    inputs = [x.to(dtype) for x in inputs]
    outcomes = (
        results(fused, inputs, dtype),
        results(plain, inputs, dtype),
        results(plain, inputs, torch.float64),
    )
    for got, theirs, truth in zip(*outcomes):
        assert got.isfinite().all()
        rounding = 4 * torch.finfo(dtype).eps * truth.abs().max()
        assert (got - truth).abs().max() <= 2 * (theirs - truth).abs().max() + rounding


def pair(b, h, m, n, d, e, device='cpu') -> list[Tensor]:
    return [
        tokens(b, h, m, d, device=device) * d**-0.25,
        tokens(b, h, n, d, device=device) * d**-0.25,
        tokens(b, h, n, e, device=device),
    ]


def fused_product(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return gaussian_product(q, k, v, 'triton')


def whole_product(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    exponent = q @ k.mT - (q * q).sum(-1, True) / 2 - (k * k).sum(-1).unsqueeze(-2) / 2
    return exponent.clamp(max=0).exp() @ v


def check_product(inputs: list[Tensor], dtype: torch.dtype) -> None:
    """The error is at most that of rounding each factor of each term once, to TF32 if it is fp32.

    A term of a gradient has four factors. Tokens in fp32 are rounded too, after centring: that
    changes an exponent by the distance times the change.
    """
    inputs = [x.to(dtype) for x in inputs]
    got, truth = (
        results(fused_product, inputs, dtype),
        results(whole_product, inputs, torch.float64),
    )
    q, k, v = (x.double() for x in inputs)
    grad = tokens(*truth[0].shape).to(truth[0]).abs() / truth[0].numel() ** 0.5
    distance = (q.unsqueeze(-2) - k.unsqueeze(-3)).norm(dim=-1)
    size = torch.zeros_like(distance)
    if dtype == torch.float32:
        centre = (k if q.shape[-2] >= k.shape[-2] else q).mean(-2, keepdim=True)
        size = (q - centre).norm(dim=-1, keepdim=True) + (k - centre).norm(dim=-1).unsqueeze(-2)
    kernel = (-0.5 * distance.square()).exp() * (1 + distance * size)
    p = kernel * (grad @ v.abs().mT) * (distance + size)
    terms = kernel @ v.abs(), p.sum(-1, True), p.sum(-2).unsqueeze(-1), kernel.mT @ grad
    unit = torch.finfo(dtype).eps / 2 if dtype != torch.float32 else 2**-11
    # The sums are fp32; half-precision gradients are rounded once more.
    for ours, exact, sum_of_terms in zip(got, truth, terms):
        assert ours.isfinite().all()
        bound = 5 * unit * sum_of_terms + unit * exact.abs() + 1e-6 * exact.abs().max()
        assert ((ours - exact).abs() <= bound + torch.finfo(dtype).tiny).all()


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('size', PRODUCTS)
def test_product(size, dtype, device):
    check_product(pair(*size, device=device), dtype)


@pytest.mark.gpu
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('size', LARGE_PRODUCTS)
def test_product_at_full_size(size, dtype, gpu):
    check_product(pair(*size, device=gpu), dtype)


def test_product_far_from_the_origin(device):
    q, k, v = pair(1, 1, 40, 20, 32, 8, device)
    check_product([q + 30, k + 30, v], torch.float32)


def test_product_of_equal_tokens(device):
    q, k, v = pair(1, 1, 40, 20, 32, 8, device)
    check_product([0 * q, 0 * k, v], torch.float32)


def test_product_is_laid_out_as_the_tokens(device):
    """Reading and writing ``(B, N, h, d)`` copies nothing: heads are views of what layers return."""
    q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in pair(2, 3, 9, 5, 16, 16))
    q, k, v = (x.to(device).requires_grad_() for x in (q, k, v))
    out = fused_product(q, k, v)
    for x in (out, *torch.autograd.grad(out.square().sum(), (q, k, v))):
        assert x.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_product_of_mixed_dtypes(dtype, device):
    """Values in fp32 beyond the range of fp16, as SOFT's solver may return, with half tokens."""
    q, k, v = pair(1, 2, 20, 70, 16, 16, device)
    q, k, v = q.to(dtype).requires_grad_(), k.to(dtype).requires_grad_(), (1e6 * v).requires_grad_()
    grads, exact = [], [x.detach().double().requires_grad_() for x in (q, k, v)]
    for inputs, fn in (((q, k, v), fused_product), (exact, whole_product)):
        out = fn(*inputs)
        assert out.dtype == torch.promote_types(torch.float32, inputs[0].dtype)
        grad = 1e-6 * tokens(*out.shape).to(out)
        grads.append([out.detach(), *torch.autograd.grad(out, inputs, grad)])
    for ours, theirs in zip(*grads):
        # Rounding of each of the four factors of a term, with terms as large as the largest result.
        tolerance = 4 * torch.finfo(dtype).eps * theirs.abs().max()
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=tolerance.item())


def test_nan_reaches_the_product(device):
    q, k, v = pair(1, 1, 130, 50, 8, 4, device)
    q[0, 0, 7, 3] = torch.nan
    for dtype in (torch.float32, torch.bfloat16):
        out = fused_product(*(x.to(dtype) for x in (q, k, v)))
        # In fp32 the centre of the smaller set, k, stays finite.
        assert out[0, 0, 7].isnan().all() and out.isnan().sum() == 4


def test_product_of_what_the_kernels_do_not_take(device):
    """Wide heads and fp64 go the torch way."""
    for size, dtype in (((1, 1, 5, 3, 65, 2), torch.float32), ((1, 1, 5, 3, 4, 2), torch.float64)):
        check(fused_product, reference_product, pair(*size, device=device), dtype)


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('size', [(2, 3, 65, 35, 32), (1, 1, 1, 1, 1), (1, 2, 40, 70, 17)])
def test_kernel(size, dtype, device):
    def fused(q: Tensor, k: Tensor) -> Tensor:
        return gaussian_kernel(q, k, 'triton')

    b, h, n, m, d = size
    check(fused, reference_kernel, pair(b, h, n, m, d, 1, device)[:2], dtype)


def test_kernel_of_equal_tokens_is_one(device):
    q = tokens(1, 2, 40, 17, device=device) + 30
    assert (gaussian_kernel(q, q, 'triton').diagonal(dim1=-2, dim2=-1) == 1).all()


@pytest.fixture
def tensor_cores(monkeypatch):
    """Make the interpreter, whose fp32 products are exact, round operands as a GPU does."""
    if torch.cuda.is_available() or not HAS_TRITON:
        return
    from triton.runtime.interpreter import InterpreterBuilder

    def rounded(x):  # to the 11 digits of TF32
        return ((x.view(np.int32) + 2**12) & -(2**13)).view(np.float32)

    def product(a, b):
        (a, a_rest), (b, b_rest) = ((rounded(x), rounded(x - rounded(x))) for x in (a, b))
        return np.matmul(a, b) + (np.matmul(a, b_rest) + np.matmul(a_rest, b))

    def create_dot(self, a, b, d, input_precision, *_):
        assert input_precision.name == 'TF32x3'
        a, b = (np.ascontiguousarray(x.data) for x in (a, b))
        return type(d)(product(a, b) + d.data, d.dtype.scalar)

    monkeypatch.setattr(InterpreterBuilder, 'create_dot', create_dot)


def fused_inverse(p: Tensor) -> Tensor:
    return newton_inverse(p, until_converged=True, backend='triton')


def check_inverse(p: Tensor) -> None:
    """The errors of the last iteration's products and of the gradient's, for each entry.

    TF32 has 11 digits. Two of them, for both operands, and the product of the rests that is left
    out, err by at most 3·2⁻²² together; the sums' roundings are independent.
    """
    (got, got_grad), (truth, grad) = (
        results(fused_inverse, [p], dtype) for dtype in (torch.float32, torch.float64)
    )
    g = (tokens(*p.shape).to(p) / p.numel() ** 0.5).abs().double()
    v, p, m, eps = truth.abs(), p.abs().double(), p.shape[-1], torch.finfo(torch.float32).eps
    rounding = 6 * eps + (3 * m) ** 0.5 * eps
    # VP and its product with V; and what is left when the iteration stops.
    error = 2 * rounding * v @ p @ v + eps * (v + v.sum(-2, keepdim=True))
    assert ((got - truth).abs() <= error).all()
    error = error @ g @ v + v @ g @ error + 2 * rounding * v @ g @ v
    assert ((got_grad - grad).abs() <= error).all()


def landmark_kernels(count: int, m: int, device: str) -> Tensor:
    x = 0.7 * tokens(count, m, 8, device=device)
    return torch.exp(-0.5 * torch.cdist(x.double(), x.double()) ** 2).float()


@pytest.mark.parametrize('alpha_scope', ['matrix', 'batch'])
@pytest.mark.parametrize('m', [1, 33, 130])
def test_scale(m, alpha_scope, device):
    """Of distinct and of coinciding landmarks, which take one halving and eight, and of others."""
    p = landmark_kernels(2, m, device)[:, None]
    p = torch.cat((p, torch.eye(m, device=device).expand(2, 1, m, m), torch.ones_like(p)), 1)
    sums = p.sum(-1, keepdim=True)
    got, expected = (newton_scale(p, sums, alpha_scope, backend) for backend in ('triton', 'torch'))
    assert got.shape == expected.shape
    # Both halve as often; a GPU's division errs by two units in the last place.
    torch.testing.assert_close(got, expected, rtol=4 * torch.finfo(torch.float).eps, atol=0)


@pytest.mark.parametrize('m', [1, 7, 16, 33, 49, 64, 65])
def test_inverse(m, device, tensor_cores):
    check_inverse(landmark_kernels(3, m, device) + 0.1 * torch.eye(m, device=device))


@pytest.mark.gpu
def test_inverse_at_full_size(gpu):
    check_inverse(landmark_kernels(1280, 49, gpu) + 0.1 * torch.eye(49, device=gpu))


def test_inverse_of_coinciding_landmarks_takes_every_iteration(device):
    p = torch.ones(2, 9, 9, device=device)
    alpha = torch.full((2, 1, 1), 0.5 / 81, device=device)
    torch.testing.assert_close(
        newton_inverse(p, alpha, 5, True, 'triton'), reference_inverse(p, alpha, 5)
    )


@pytest.mark.parametrize('iterations', [0, 1, 20])
def test_inverse_takes_the_steps_it_is_told(iterations, device):
    p = landmark_kernels(2, 20, device)
    alpha = 1.8 / p.sum(-1).amax(-1)[:, None, None].square()
    torch.testing.assert_close(
        newton_inverse(p, alpha, iterations, backend='triton'),
        reference_inverse(p.double(), alpha.double(), iterations).float(),
        rtol=2e-4,
        atol=2e-4,
    )


@pytest.mark.parametrize('sym_norm', [False, True])
@pytest.mark.parametrize('m', [1, 49, 65])
def test_inverse_of_landmarks(m, sym_norm, device):
    """As one op, against K2, its normalisation, α and the iterations one by one."""

    def solution(solver: str, backend: str):
        return lambda x, v: solve_landmarks(x, v, sym_norm, solver, 'matrix', backend)

    inputs = [tokens(2, 1, m, channels, device=device) for channels in (8, 5)]
    check(solution('newton', 'triton'), solution('iteration', 'torch'), inputs, torch.float32)


def systems(count: int, m: int, e: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    p = landmark_kernels(count, m, device)
    alpha = 1.8 / p.sum(-1).amax(-1)[:, None, None].square()
    return p.requires_grad_(), tokens(count, m, e, device=device).requires_grad_(), alpha


def solutions(p: Tensor, v: Tensor, alpha: Tensor, fn=newton_solve) -> tuple[Tensor, ...]:
    """V_T v, and the gradients of its sum."""
    out = fn(p, v, alpha)
    return out, *torch.autograd.grad(out.sum(), (p, v))


def iterated_solve(p: Tensor, v: Tensor, alpha: Tensor) -> Tensor:
    return newton_inverse(p, alpha, backend='torch') @ v


def check_solutions(got: tuple[Tensor, ...], p: Tensor, v: Tensor, alpha: Tensor) -> None:
    """Compare with the iteration in fp64, whose gradient is implicit too.

    The error of an inverse is at most the condition of P + δI times that of a rounding, here of two
    for the product of three TF32 products; the rational function's error adds to it. The gradient
    of P is a product of two such results.
    """
    exact = (x.detach().double().requires_grad_() for x in (p, v))
    expected = solutions(*exact, alpha.double(), iterated_solve)
    norm = torch.linalg.matrix_norm(p.detach(), 2).amax()
    condition = norm * (alpha.amax() * 2**20).sqrt() / POLE + 1
    tolerance = 2 * torch.finfo(torch.float32).eps * condition + 2.2e-6
    for x, truth, factor in zip(got, expected, (1, 2, 1)):
        assert (x - truth).norm() <= factor * tolerance * truth.norm()


def test_solve(device, tensor_cores):
    inputs = systems(1, 65, 17, device)
    with set_backend('triton'):
        check_solutions(solutions(*inputs), *inputs)


@pytest.mark.skipif(not HAS_TRITON, reason='there is no Triton, or one before 3.4')
@pytest.mark.parametrize('m', [5, 130])
def test_complement_of_the_inverse(m, device, tensor_cores):
    """One and three blocks, whose last is padded; the tolerance is that of ``check_solutions``."""
    from soft_mm.ops.newton_solve.triton_kernels import factor

    p, root = landmark_kernels(2, m, device), torch.full((2, 1, 1), 100.0, device=device)
    out, delta = torch.empty_like(p), POLE / 100
    factor(out, p, root, POLE)
    truth = torch.linalg.solve(p.double() + delta * torch.eye(m, device=device), p.double())
    condition = torch.linalg.matrix_norm(p, 2).amax() / delta + 1
    assert (out - truth).norm() <= 2 * torch.finfo(p.dtype).eps * condition * truth.norm()


@pytest.mark.skipif(not HAS_TRITON, reason='there is no Triton, or one before 3.4')
def test_product_with_other_terms(device, tensor_cores):
    """Two strips of columns, and rows that do not fill the last tile."""
    from soft_mm.ops.newton_solve.triton_kernels import product

    matrix, y, *terms = tokens(5, 2, 70, 70, device=device)
    got = product(matrix, y, 3, (-1, y), (2, terms[0]), (0.5, terms[1]))
    truth = 3 * matrix.double() @ y.double() - y + 2 * terms[0] + 0.5 * terms[1]
    size = 3 * matrix.abs().double() @ y.abs().double() + y.abs() + terms[0].abs() + terms[1].abs()
    assert ((got - truth).abs() <= (6 + (3 * 70) ** 0.5) * torch.finfo(y.dtype).eps * size).all()


@pytest.mark.gpu
@pytest.mark.parametrize('m', [49, 81, 160, 256, 1050])
def test_solve_waits_for_nothing(m, gpu):
    inputs = systems(2, m, 32, gpu)
    torch.cuda.set_sync_debug_mode('error')
    try:
        got = solutions(*inputs)
    finally:
        torch.cuda.set_sync_debug_mode('default')
    check_solutions(got, *inputs)


@pytest.mark.gpu
@pytest.mark.parametrize('m', [49, 81, 160, 256, 1050])
def test_solve_in_a_graph(m, gpu):
    inputs, others = systems(2, m, 32, gpu), systems(3, m, 32, gpu)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # compiles the kernels
        solutions(*inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = solutions(*inputs)
    with torch.no_grad():
        for x, other in zip(inputs, others):
            x.copy_(other[1:])
    graph.replay()
    check_solutions(got, *inputs)


def convolutions(b, h, w, c, device='cpu') -> list[Tensor]:
    return [
        tokens(b, h * w, c, device=device),
        tokens(b, c, 3, 3, device=device),
        tokens(c, device=device),
    ]


def check_conv(size, dtype, device) -> None:
    hw = size[1:3]
    check(
        lambda v, f, b: dynamic_conv(v, f, hw, b, 'triton'),
        lambda v, f, b: reference_conv(v, f, hw, b),
        convolutions(*size, device=device),
        dtype,
    )


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('size', MAPS)
def test_convolution(size, dtype, device):
    check_conv(size, dtype, device)


@pytest.mark.gpu
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('size', LARGE_MAPS)
def test_convolution_at_full_size(size, dtype, gpu):
    check_conv(size, dtype, gpu)


# Expanded over the maps; at a distance that is no whole number of tokens; channel-first.
@pytest.mark.parametrize('strides', [(0, 5, 1), (67, 5, 1), (60, 1, 12)])
def test_convolution_reads_any_strides(strides, device):
    v = tokens(200, device=device).as_strided((3, 12, 5), strides)
    _, filters, bias = convolutions(3, 3, 4, 5, device)
    filters.requires_grad_()
    outs = (
        dynamic_conv(v, filters, (3, 4), bias, 'triton'),
        reference_conv(v, filters, (3, 4), bias),
    )
    torch.testing.assert_close(*outs)
    torch.testing.assert_close(
        *(torch.autograd.grad(out.square().sum(), filters) for out in outs), rtol=1e-5, atol=1e-4
    )


@pytest.mark.skipif(not HAS_TRITON, reason='there is no Triton, or one before 3.4')
def test_any_number_of_maps_fits_the_grid(monkeypatch):
    """CUDA allows 2³¹ − 1 programs in the first dimension, and 65535 in each of the others."""
    from soft_mm.ops.dynamic_conv import triton_kernels

    grids = {}

    class Kernel:
        def __init__(self, name):
            self.name = name

        def __getitem__(self, grid):
            grids[self.name] = grid
            return lambda *args: None

    for name in ('_convolve', '_correlate'):
        monkeypatch.setattr(triton_kernels, name, Kernel(name))
    v, filters, _ = (x.requires_grad_() for x in convolutions(70_000, 1, 3, 2))
    triton_kernels.fused_dynamic_conv(v, filters, None, 1, 3).sum().backward()
    assert grids.keys() == {'_convolve', '_correlate'}
    for first, *others in grids.values():
        assert 70_000 <= first < 2**31
        assert all(size <= 65535 for size in others)


@pytest.mark.skipif(not HAS_TRITON, reason='there is no Triton, or one before 3.4')
def test_the_convolution_is_compiled_once_for_every_size():
    """Forward and for both gradients, whatever Triton's launcher specialises kernels for."""
    script = """
from collections import defaultdict
import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import create_function_from_signature
from soft_mm.ops.dynamic_conv import triton_kernels

versions = defaultdict(set)

def record(kernel):
    backend = make_backend(GPUTarget('cuda', 90, 32))
    specialise = create_function_from_signature(kernel.signature, kernel.params, backend)
    kernel.run = lambda *args, grid, warmup: versions[kernel.fn.__name__].add(
        str(specialise(*args)[1])
    )

record(triton_kernels._convolve)
record(triton_kernels._correlate)
for channels in 64, 20:
    versions.clear()
    for maps, height, width in (1, 1, 1), (2, 7, 7), (16, 16, 16), (1, 40, 33), (700, 1, 5):
        v = torch.ones(maps, height * width, 3 * channels)[..., channels : 2 * channels]
        filters, bias = torch.ones(maps, channels, 3, 3), torch.ones(channels)
        leaves = [x.requires_grad_() for x in (v, filters, bias)]
        triton_kernels.fused_dynamic_conv(*leaves, height, width).sum().backward()
    print(len(versions['_convolve']), len(versions['_correlate']))
"""
    environment = {k: v for k, v in os.environ.items() if k != 'TRITON_INTERPRET'}
    done = subprocess.run(
        [sys.executable, '-c', script],
        env=environment | dict(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    # The convolution has a version with a bias, and one without for the gradient.
    assert done.stdout.split() == ['2', '1'] * 2


@pytest.mark.parametrize('solver', ['newton', 'iteration', 'ridge'])
@pytest.mark.parametrize('sym_norm', [False, True])
def test_attention(sym_norm, solver, device):
    q, landmarks, v = pair(1, 2, 70, 9, 16, 16, device)
    v = tokens(*q.shape, device=device)

    def attention(backend):
        return lambda *x: nystrom_attention(*x, sym_norm, solver, backend=backend)

    inputs = [q, v, landmarks]
    got = results(attention('triton'), inputs, torch.float32)
    truth = results(attention('reference'), inputs, torch.float64)
    # TF32 rounds as fp16 does: to 11 bits.
    rounded = results(attention('reference'), [x.half() for x in inputs], torch.float64)
    for ours, exact, theirs in zip(got, truth, rounded):
        assert (ours - exact).abs().max() <= 4 * (theirs - exact).abs().max()


# hw, size and shift of the windows, extra tokens, bias: a class token; parts of a window that are
# summed apart; windows that are shifted and padded; d = 20, which is no power of two.
INLINE = [
    ((5, 7), (5, 7), (0, 0), 3, False),
    ((9, 30), (9, 30), (0, 0), 0, True),
    ((5, 4), (3, 3), (1, 1), 0, True),
]
LARGE_INLINE = [
    ((200, 336), (200, 336), (0, 0), 0, True),
    ((200, 336), (56, 56), (28, 28), 0, False),
]


def check_inline(hw, size, shift, extra, has_bias, dims, num_heads, dtype, device) -> None:
    windows = Windows(hw, size, shift)
    count = 2 * windows.real(torch.device('cpu')).shape[0]
    inputs = [
        tokens(2, extra + hw[0] * hw[1], dims, device=device) + 0.5,
        tokens(3 * dims, dims, device=device) * dims**-0.5,
        tokens(3 * dims, device=device),
        tokens(count, dims, 3, 3, device=device),
        *([tokens(dims, device=device)] if has_bias else []),
    ]

    def attention(backend: str):
        def attend(x, weight, bias, filters, filter_bias=None):
            return inline_self_attention(
                x, weight, bias, filters, filter_bias, num_heads, windows, backend=backend
            )

        return attend

    check(attention('triton'), attention('reference'), inputs, dtype)


@pytest.mark.parametrize('case', INLINE)
def test_inline_attention(case, device):
    check_inline(*case, 40, 2, torch.float32, device)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_inline_attention_in_half_precision(dtype, device):
    check_inline(*INLINE[0], 32, 1, dtype, device)


@pytest.mark.gpu
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('num_heads', [1, 2])
@pytest.mark.parametrize('case', LARGE_INLINE)
def test_inline_attention_at_full_size(case, num_heads, dtype, gpu):
    check_inline(*case, 64, num_heads, dtype, gpu)


@pytest.mark.parametrize(
    'make',
    [
        lambda: SOFTAttention(32, 2, 2, 3, sym_norm=True),
        lambda: InLineAttention(32, 2),
        lambda: InLineAttention(32, 2, window_size=3, shifted=True, lepe=True),
    ],
)
def test_layers(make, device):
    """A whole layer with every parameter's gradient, by the selected backend, with checkpointing."""
    torch.manual_seed(0)
    layer, x = make().to(device), tokens(2, 35, 32, device=device)
    outcomes = []
    for backend in ('triton', 'torch'):
        with set_backend(backend):
            out = checkpoint(layer, x, (5, 7), use_reentrant=False)
            gradients = torch.autograd.grad(out.square().mean(), layer.parameters())
        outcomes.append([out, *gradients])
    for got, expected in zip(*outcomes):
        # Products in TF32, which has 11 bits: four factors are rounded.
        torch.testing.assert_close(
            got, expected, rtol=1e-4, atol=2**-9 * expected.abs().max().item()
        )


def test_results_are_the_same_bits_each_time(device):
    inputs = pair(1, 1, 7, 1100, 16, 16, device)
    first, second = (results(fused_product, inputs, torch.float32) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second))


def test_opcheck(device):
    import soft_mm.ops.inline_attention.triton_kernels  # noqa: F401
    from soft_mm.ops.dynamic_conv.triton_kernels import fused_dynamic_conv
    from soft_mm.ops.nystrom_attention.landmark_solve import landmark_solve

    q, k, v = (x.requires_grad_() for x in pair(1, 2, 5, 3, 4, 2, device))
    torch.library.opcheck(torch.ops.soft_mm.gaussian_kernel, (q, k, 'triton'))
    torch.library.opcheck(torch.ops.soft_mm.gaussian_product, (q, k, v, 'triton'))
    torch.library.opcheck(landmark_solve, (k, v.detach().clone().requires_grad_(), True, 'triton'))
    v, filters, bias = (x.requires_grad_() for x in convolutions(2, 3, 4, 5, device))
    torch.library.opcheck(fused_dynamic_conv, (v, filters, bias, 3, 4))
    torch.library.opcheck(fused_dynamic_conv, (v, filters, None, 3, 4))
    qkv = tokens(2, 13, 24, device=device).requires_grad_()
    filters = tokens(2, 8, 3, 3, device=device).requires_grad_()
    sizes = 2, [3, 4], [3, 4], [0, 0]
    torch.library.opcheck(torch.ops.soft_mm.inline_attention, (qkv, filters, None, *sizes))


def test_compiles_without_a_graph_break(device):
    q, k, v = pair(1, 2, 20, 5, 16, 8, device)
    compiled = torch.compile(fused_product, fullgraph=True, backend='aot_eager')
    torch.testing.assert_close(compiled(q, k, v), fused_product(q, k, v))


def without_interpreter(*arguments) -> list[list[str]]:
    """Run Python where Triton compiles, and return the words of the lines that it prints."""
    environment = {k: v for k, v in os.environ.items() if k != 'TRITON_INTERPRET'}
    environment['PYTHONPATH'] = str(ROOT)
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [line.split() for line in done.stdout.splitlines()]


# Kibibytes of shared memory of a block.
SHARED = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
# Thread-instructions per element, by the beginning of the name: at most so many in the config that
# needs the fewest. SOFT's heads have 32 channels; 64 double the products, see the README of the op.
MOST_INSTRUCTIONS = {
    r'_sum_values-.*-32-(64|128)-\d+$': 14,
    r'_sum_gradients-.*-32-(64|128)-\d+(-None)?$': 14,
    r'_sum_values-.*-64-128-\d+$': 15,
    r'_sum_gradients-bf16.*-64-128-\d+(-None)?$': 16,
    r'_sum_gradients-fp32.*-64-128-\d+(-None)?$': 28,
    # An H100 executes about ten while it moves a byte: InLine's first passes read 4 and 6 bytes of
    # bf16, the last gradient moves 12. The forward pass, of 6, takes more than that.
    r'_sum_keys_and_values-bf16.*-True-tf32$': 40,
    r'_attend-bf16.*-True-tf32$': 75,
    r'_sum_gradients-bf16.*-True-tf32$': 60,
    r'_gradients-bf16.*-True-tf32$': 120,
    r'_convolve-fp32': 50,
    r'_convolve-bf16': 55,
    r'_correlate-': 45,
}
# To occupy the GPU better, ptxas may put six registers on the stack.
STACK = 24


@pytest.mark.skipif(not HAS_TRITON, reason='there is no Triton, or one before 3.4')
@pytest.mark.parametrize(
    'capability', [pytest.param(c, marks=() if c == 90 else pytest.mark.long) for c in SHARED]
)
def test_every_kernel_compiles_for_a_gpu(capability):
    """Triton's compiler and ptxas need no GPU: what a thread and a block take fits."""
    script = Path(__file__).with_name('kernel_resources.py')
    configs, stacks = defaultdict(list), defaultdict(list)
    for name, shared, registers, stack, instructions in without_interpreter(
        script, str(capability)
    ):
        assert 0 < int(registers) <= 255, name
        if int(shared) <= SHARED[capability] * 1024:  # the tuner drops the others
            configs[name].append(instructions)
            stacks[name].append(int(stack))
        else:
            configs[name] += []
    assert len(configs) == 53
    assert all(configs.values()), configs
    # On the oldest GPUs every config fits in registers, on the newest at least one.
    worst = max if capability <= 90 else min
    assert all(worst(values) <= STACK for values in stacks.values()), stacks
    for pattern, most in MOST_INSTRUCTIONS.items():
        matching = {name: values for name, values in configs.items() if re.match(pattern, name)}
        assert matching, pattern
        for name, values in matching.items():
            assert min(map(float, values)) <= most * (1 if capability <= 90 else 1.1), name


@pytest.mark.skipif(not HAS_TRITON, reason='there is no Triton, or one before 3.4')
def test_other_sizes_compile_nothing_new():
    """No number of tokens, heads or parts is a constant of the compiled product."""
    script = (
        'from soft_mm.ops.gaussian_product import triton_kernels as t\n'
        'for k in t._prepare, t._sum_values.fn, t._sum_gradients.fn:\n'
        '    print(*(p.name for p in k.params if p.do_not_specialize or "_" in p.name))\n'
        '    print(*(p.name for p in k.params if not p.is_constexpr))'
    )
    lines = without_interpreter('-c', script)
    for free, arguments in zip(lines[::2], lines[1::2]):
        sizes = set(arguments) & {'heads', 'M', 'N', 'splits'}
        assert sizes and sizes <= set(free)
        # Strides are divisible by 16 or not, as the width of the tokens is, and else not constant.
        assert all(re.search('_(batch|head|token|split|norms)$', x) for x in set(free) - sizes)

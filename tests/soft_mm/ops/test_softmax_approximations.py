"""Softmax attention, and Performer's and Nyströmformer's approximations of it."""

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from soft_mm.ops import nystromformer_attention, performer_attention, softmax_attention
from soft_mm.ops.nystromformer_attention.reference import attention_rows as nystromformer_rows
from soft_mm.ops.performer_attention.features import orthogonal_features
from soft_mm.ops.performer_attention.reference import attention_rows as performer_rows
from soft_mm.ops.softmax_attention.reference import attention_rows as softmax_rows

# The op, its weights, and what it takes beside queries, keys and values of d channels.
OPS = {
    'softmax': (softmax_attention, softmax_rows, lambda d: []),
    'performer': (performer_attention, performer_rows, lambda d: [(2 * d + 1, d)]),
    'nystromformer': (nystromformer_attention, nystromformer_rows, lambda d: [(2, 3, 5, d)] * 2),
}
SIZES = [(33, 17, 8), (1, 1, 1), (49, 65, 32)]  # M, N, d


@pytest.fixture(params=OPS)
def name(request) -> str:
    return request.param


def tokens(*shape: int, dtype=torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype)


def arguments(name: str, m: int, n: int, d: int, dtype=torch.float64) -> list[Tensor]:
    shapes = [(2, 3, m, d), (2, 3, n, d), (2, 3, n, d), *OPS[name][2](d)]
    return [tokens(*shape, dtype=dtype, seed=i) for i, shape in enumerate(shapes)]


@pytest.mark.parametrize('size', SIZES)
def test_equals_the_reference_with_every_gradient(name, size):
    inputs = [t.requires_grad_() for t in arguments(name, *size)]
    ours, theirs = (OPS[name][0](*inputs, backend=backend) for backend in ('torch', 'reference'))
    torch.testing.assert_close(ours, theirs)
    grad = tokens(*ours.shape)
    for got, expected in zip(
        torch.autograd.grad(ours, inputs, grad), torch.autograd.grad(theirs, inputs, grad)
    ):
        torch.testing.assert_close(got, expected)


def test_fp32_and_any_strides(name):
    """The error against fp64 is at most twice that of the reference in fp32, plus rounding."""
    exact = OPS[name][0](*arguments(name, 49, 65, 32), backend='reference')
    inputs = arguments(name, 49, 65, 32, torch.float32)
    inputs = [t.mT.contiguous().mT for t in inputs]
    assert not inputs[0].is_contiguous()
    ours, theirs = (
        (OPS[name][0](*inputs, backend=backend).double() - exact).abs().max()
        for backend in ('torch', 'reference')
    )
    assert ours <= 2 * theirs + torch.finfo(torch.float32).eps * exact.abs().max()


def test_gradcheck(name):
    inputs = [t.requires_grad_() for t in arguments(name, 5, 7, 3)]
    assert torch.autograd.gradcheck(OPS[name][0], inputs)


def test_rows_times_values(name):
    q, k, v, *others = arguments(name, 33, 17, 8)
    rows = OPS[name][1](q, k, *others)
    assert rows.shape == (2, 3, 33, 17)
    torch.testing.assert_close(rows @ v, OPS[name][0](q, k, v, *others))


def test_shapes_are_checked(name):
    q, k, v, *others = arguments(name, 5, 7, 3)
    with pytest.raises(ValueError, match=r'equal leading dimensions.*\(2, 3, 6, 3\)'):
        OPS[name][0](q, k, v[:, :, :6], *others)
    with pytest.raises(ValueError, match='backend'):
        OPS[name][0](q, k, v, *others, backend='fast')


class Largest(TorchDispatchMode):
    """Number of elements of the largest tensor that an operator returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = [x.numel() for x in tree_leaves(out) if isinstance(x, Tensor)]
        self.elements = max([self.elements, *sizes])
        return out


def largest(name: str, n: int, backend: str) -> int:
    """Elements of the largest tensor in forward and backward pass for n tokens."""
    with FakeTensorMode():
        inputs = [t.requires_grad_() for t in arguments(name, n, n, 32, torch.float32)]
        with Largest() as watch:
            OPS[name][0](*inputs, backend=backend).sum().backward()
    return watch.elements


def test_memory_is_linear(name):
    assert largest(name, 8192, 'torch') == 2 * largest(name, 4096, 'torch')
    assert largest(name, 4096, 'torch') <= 2 * 3 * 4096 * 65
    assert largest(name, 4096, 'reference') == 2 * 3 * 4096**2


def test_masks():
    q, k, v = arguments('softmax', 5, 7, 3)
    bias, attended = tokens(3, 5, 7), tokens(5, 7) > 0
    attended[:, 0] = True
    for mask, equal in (
        (bias, bias),
        (attended, torch.zeros(5, 7).double().masked_fill(~attended, -torch.inf)),
    ):
        expected = (3**-0.5 * q @ k.mT + equal).softmax(-1) @ v
        for backend in 'torch', 'reference':
            torch.testing.assert_close(softmax_attention(q, k, v, mask, backend), expected)


def test_features_are_orthogonal_and_as_long_as_normal_vectors():
    features = orthogonal_features(96, 32)
    torch.testing.assert_close(features, orthogonal_features(96, 32), rtol=0, atol=0)
    assert not torch.equal(features, orthogonal_features(96, 32, seed=1))
    for block in features.double().split(32):
        products = block @ block.T
        lengths = products.diagonal().sqrt()
        angles = products / (lengths[:, None] * lengths)
        torch.testing.assert_close(angles, torch.eye(32).double(), rtol=0, atol=1e-6)
    assert orthogonal_features(40, 32).shape == (40, 32)
    # Of 4096 squared lengths with mean 32 and variance 64, and of 2^17 numbers with variance 1.
    many = orthogonal_features(4096, 32).double()
    assert abs(many.square().sum(-1).mean() - 32) < 5 * (64 / 4096) ** 0.5
    assert abs(many.mean()) < 5 / many.numel() ** 0.5


def test_performer_estimates_softmax_attention():
    """The squared error decreases with the number of features."""
    q, k, v = (0.5 * t for t in arguments('performer', 33, 17, 8)[:3])
    exact = softmax_attention(q, k, v)
    errors = [
        (performer_attention(q, k, v, orthogonal_features(number, 8)) - exact).square().mean()
        for number in (2**8, 2**16)
    ]
    assert errors[1] < errors[0] / 64  # 256 times as many features; the rest is chance


def test_performer_is_finite_for_tokens_of_any_length():
    q, k, v = (1e3 * t for t in arguments('performer', 33, 17, 8, torch.float32)[:3])
    inputs = [t.requires_grad_() for t in (q, k, v)]
    features = orthogonal_features(16, 8)
    assert not performer_attention(*inputs, features, backend='reference').isfinite().all()
    out = performer_attention(*inputs, features)
    out.sum().backward()
    assert all(t.isfinite().all() for t in (out, *(t.grad for t in inputs)))
    assert out.abs().max() <= v.abs().max() * (1 + 1e-6)  # an average of values


def test_nystromformer_with_all_tokens_as_landmarks_is_softmax_attention():
    """S A⁺ S = S, up to what the six iterations leave of A."""
    q = 4 * torch.eye(8)[None, None].double()
    k = q + 0.1 * tokens(1, 1, 8, 8)
    v = tokens(1, 1, 8, 8)
    ours = nystromformer_attention(q, k, v, q, k)
    torch.testing.assert_close(ours, softmax_attention(q, k, v), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision(name, dtype):
    """At most four tensors are rounded, by half an eps each: weights and values, twice."""
    inputs = arguments(name, 49, 65, 32)
    rounded = [t.to(dtype) for t in inputs]
    exact = OPS[name][0](*(t.double() for t in rounded), backend='reference')
    out = OPS[name][0](*rounded)
    error = (out.double() - exact).abs().max() / exact.abs().max()
    assert error < 2 * torch.finfo(dtype).eps

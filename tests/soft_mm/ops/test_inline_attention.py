import pytest
import torch
from torch import Tensor

from soft_mm.ops import inline_attention, inline_self_attention, linear_attention, set_backend
from soft_mm.ops.inline_attention.joint_heads import joint_heads_attention
from soft_mm.ops.inline_attention.reference import attention_rows
from soft_mm.ops.inline_attention.reference import inline_attention as reference
from soft_mm.ops.inline_attention.reference import linear_attention as linear_reference
from soft_mm.ops.inline_attention.self_attention import covariance_self_attention, is_worthwhile
from soft_mm.ops.shapes import split_heads
from soft_mm.ops.windows import Windows

SIZES = [(2, 3, 49, 65, 32, 32), (1, 1, 1, 1, 1, 1), (2, 1, 33, 17, 5, 7)]  # B, h, M, N, d, e


def tokens(*shape: int, dtype=torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(sum(shape)))


def qkv(b, h, m, n, d, e, dtype=torch.float64) -> list[Tensor]:
    return [
        tokens(b, h, m, d, dtype=dtype),
        tokens(b, h, n, d, dtype=dtype) + 0.5,
        tokens(b, h, n, e, dtype=dtype) - 1,
    ]


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize(
    ('op', 'definition'), [(inline_attention, reference), (linear_attention, linear_reference)]
)
def test_equals_the_definition_with_every_gradient(op, definition, size):
    inputs = qkv(*size)
    if op is linear_attention:  # which divides by the sum of the scores
        inputs[:2] = (t.abs() for t in inputs[:2])
    inputs = [t.requires_grad_() for t in inputs]
    ours, theirs = op(*inputs), definition(*inputs)
    torch.testing.assert_close(ours, theirs)
    grad = tokens(*ours.shape)
    for got, expected in zip(
        torch.autograd.grad(ours, inputs, grad), torch.autograd.grad(theirs, inputs, grad)
    ):
        torch.testing.assert_close(got, expected)


def test_gradcheck():
    inputs = [t.requires_grad_() for t in qkv(2, 1, 5, 3, 4, 2)]
    assert torch.autograd.gradcheck(inline_attention, inputs)


def test_rows_sum_to_one():
    q, k, _ = qkv(2, 3, 5, 7, 4, 4)
    torch.testing.assert_close(attention_rows(q, k).sum(-1), torch.ones(2, 3, 5).double())


def test_different_queries_have_different_rows():
    """Linear attention, in contrast, gives q and 3q the same row, but for what it adds to the sum."""
    q, k = tokens(6, 4).abs(), tokens(9, 4).abs()
    row, longer = (attention_rows(x, k, normalization='division') for x in (q, 3 * q))
    torch.testing.assert_close(row, longer, rtol=2e-5, atol=0)
    # The centred keys span the space, so any two different queries have different rows.
    rows = attention_rows(torch.cat((q, 3 * q)), k)
    assert torch.pdist(rows).min() > 1e-3
    # With the identity as values, the outputs are the rows.
    outputs = inline_attention(torch.cat((q, 3 * q)), k, torch.eye(9).double())
    torch.testing.assert_close(outputs, rows)


def test_padding_with_num_tokens_changes_nothing():
    inputs = qkv(2, 3, 5, 7, 4, 4)
    q, k, v = inputs
    k, v = (torch.nn.functional.pad(t, (0, 0, 0, 6)) for t in (k, v))
    padded = inline_attention(q, k, v, torch.full((2, 1, 1, 1), 7))
    torch.testing.assert_close(padded, reference(*inputs))
    assert (inline_attention(q, k, v) - padded).abs().max() > 0.1


def test_linear_attention_of_a_query_of_zeros_is_finite():
    q, k, v = (t.requires_grad_() for t in qkv(1, 1, 3, 5, 4, 4))
    out = linear_attention(0 * q, k, v)
    assert not out.any()
    assert all(g.isfinite().all() for g in torch.autograd.grad(out.sum(), (q, k, v)))


def test_non_contiguous_inputs_and_gradients():
    inputs = [tokens(2, n, 3, 8).transpose(1, 2).requires_grad_() for n in (5, 7, 7)]
    assert not any(t.is_contiguous() for t in inputs)
    ours = inline_attention(*inputs)
    torch.testing.assert_close(ours, reference(*inputs))
    grad = tokens(*ours.shape).mT.contiguous().mT
    for got, expected in zip(
        torch.autograd.grad(ours, inputs, grad),
        torch.autograd.grad(reference(*inputs), inputs, grad),
    ):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
def test_computes_in_fp32(dtype):
    """Sums over this many tokens would overflow fp16; only the inputs are rounded."""
    q, k, v = (t.to(dtype) for t in qkv(1, 1, 8, 5000, 4, 4))
    k, v = 100 * k, 100 * v
    out = inline_attention(q, k, v)
    assert out.dtype == torch.float32
    exact = reference(q.double(), k.double(), v.double())
    assert (out - exact).abs().max() <= 1e-5 * exact.abs().max()
    with torch.autocast('cpu', torch.bfloat16):
        torch.testing.assert_close(inline_attention(q, k, v), out, rtol=0, atol=0)


@pytest.mark.parametrize(
    'shapes',
    [
        ((2, 3, 4), (1, 5, 4), (1, 5, 4)),
        ((2, 3, 4), (2, 5, 3), (2, 5, 3)),
        ((2, 3, 4), (2, 5, 4), (2, 6, 4)),
    ],
)
def test_shapes_are_checked(shapes):
    with pytest.raises(ValueError, match=r'got \(2, 3, 4\)'):
        inline_attention(*(torch.zeros(shape) for shape in shapes))


def projections(*shape: int, dtype=torch.float64) -> list[Tensor]:
    """x ``(B, N, C)``, weight and bias of q, k and v."""
    dims = shape[-1]
    shapes = shape, (3 * dims, dims), (3 * dims,)
    return [(tokens(*s, dtype=dtype) + 0.5).requires_grad_() for s in shapes]


def projected(x: Tensor, weight: Tensor, bias: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
    q, k, v = torch.nn.functional.linear(x, weight, bias).chunk(3, -1)
    out = reference(*(split_heads(t, num_heads) for t in (q, k, v)))
    return out.transpose(1, 2).flatten(2), v


def from_covariance(
    x: Tensor, weight: Tensor, bias: Tensor, num_heads: int
) -> tuple[Tensor, Tensor]:
    return covariance_self_attention(x, x.mean(1), weight, bias, num_heads)


@pytest.mark.parametrize(('shape', 'num_heads'), [((2, 33, 8), 2), ((3, 7, 6), 1), ((1, 1, 4), 4)])
def test_self_attention_from_covariance_equals_the_definition_with_every_gradient(shape, num_heads):
    inputs = projections(*shape)
    ours, theirs = (attend(*inputs, num_heads) for attend in (from_covariance, projected))
    torch.testing.assert_close(ours, theirs)
    grads = [tokens(*shape), tokens(*shape) - 1]
    for got, expected in zip(
        torch.autograd.grad(ours, inputs, grads), torch.autograd.grad(theirs, inputs, grads)
    ):
        torch.testing.assert_close(got, expected, atol=1e-11, rtol=1e-9)


def test_self_attention_from_covariance_in_fp32():
    """At most twice the error of computing q and k, although the tokens' mean is far from 0."""
    inputs = projections(1, 4096, 64, dtype=torch.float32)
    exact = projected(*(t.double() for t in inputs), 2)[0]
    q, k, v = torch.nn.functional.linear(*inputs).chunk(3, -1)
    plain = inline_attention(*(split_heads(t, 2) for t in (q, k, v))).transpose(1, 2).flatten(2)
    error, plain_error = (
        (out - exact).abs().max() for out in (from_covariance(*inputs, 2)[0], plain)
    )
    assert error <= max(2 * plain_error, 1e-5 * exact.abs().max())


def test_self_attention_from_covariance_passes_opcheck():
    x, *weights = projections(2, 9, 8, dtype=torch.float32)
    mean = tokens(2, 8, dtype=torch.float32).requires_grad_()
    torch.library.opcheck(torch.ops.soft_mm.inline_self_attention, (x, mean, *weights, 2))


def test_the_covariance_is_used_for_many_tokens_on_a_cpu():
    many, few = tokens(1, 400, 8, dtype=torch.float32), tokens(1, 9, 8, dtype=torch.float32)
    assert is_worthwhile(many, 2, None)
    assert not is_worthwhile(few, 2, None)
    assert not is_worthwhile(many.half(), 2, None)
    with torch.autocast('cpu', torch.bfloat16):
        assert not is_worthwhile(many, 2, None)
    with set_backend('reference'):
        assert not is_worthwhile(many, 2, None)


def test_a_bias_of_the_convolution_needs_a_map_alone():
    x, weight, bias = tokens(1, 7, 4), tokens(12, 4), tokens(12)
    windows = Windows.fit((2, 3), None, False)
    with pytest.raises(ValueError, match='filter_bias needs .* 2·3, got 7'):
        inline_self_attention(x, weight, bias, tokens(1, 4, 3, 3), tokens(4), 2, windows)


def test_rows_within_windows_are_those_of_the_window():
    q, k, _ = qkv(2, 3, 5, 7, 4, 4)
    attended = torch.tensor([True, False, True, True, False, False, True])
    rows = attention_rows(q, k, attended.expand(5, 7))
    assert not rows[..., ~attended].any()
    torch.testing.assert_close(rows[..., attended], attention_rows(q, k[:, :, attended]))


@pytest.mark.parametrize('padding', [0, 5])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_joint_heads(dtype, padding):
    """The output and the gradients err by the rounding of the small matrices, means and results."""
    b, n, num_heads, dims = 2, 37, 3, 24
    inputs = (tokens(b, n, 3 * dims) + 0.5).to(dtype).requires_grad_()
    grad = tokens(b, n, dims).to(dtype)
    rows = (0, 0, 0, padding)
    padded = torch.nn.functional.pad(inputs, rows)
    ours = joint_heads_attention(padded, num_heads, torch.full((b, 1, 1), n) if padding else None)
    (ours_grad,) = torch.autograd.grad(ours, inputs, torch.nn.functional.pad(grad, rows))

    leaf = inputs.detach().double().requires_grad_()
    q, k, v = (split_heads(x, num_heads) for x in leaf.chunk(3, -1))
    exact = reference(q, k, v)
    g = split_heads(grad.double(), num_heads)
    (exact_grad,) = torch.autograd.grad(exact, leaf, g)
    scale = q.shape[-1] ** -0.5 / n
    k_mean, v_mean, g_mean = (x.abs().mean(2, keepdim=True) for x in (k, v, g))
    covariance = scale * ((k - k.mean(2, keepdim=True)).mT @ v).abs()
    product = scale * (q.mT @ g).abs()
    sizes = (
        q.abs() @ covariance + v_mean,
        g.abs() @ covariance.mT,
        (v.abs() + v_mean) @ product.mT,
        (k.abs() + k_mean) @ product + g_mean,
    )
    pairs = [(ours[:, :n], exact)]
    pairs += zip(
        ours_grad.chunk(3, -1), (split_heads(x, num_heads) for x in exact_grad.chunk(3, -1))
    )
    for (got, truth), size in zip(pairs, sizes):
        error = (split_heads(got.double(), num_heads) - truth).abs()
        # Three roundings by half a unit: of a factor, of the sum so far, and of the result.
        assert (error <= 1.5 * torch.finfo(dtype).eps * (size + truth.abs())).all()

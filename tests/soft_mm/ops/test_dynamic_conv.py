import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from soft_mm.ops import dynamic_conv
from soft_mm.ops.dynamic_conv.reference import dynamic_conv as reference
from soft_mm.ops.extension import missing

OPS = torch.ops.soft_mm


def tokens(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def compiled() -> str:
    if missing():
        pytest.skip(missing())
    return 'extension'


@pytest.fixture(params=['torch', 'extension'])
def backend(request) -> str:
    return request.getfixturevalue('compiled') if request.param == 'extension' else request.param


# B, H, W, C: one token, one column, one row, channels that fill vectors, fill some and none.
SIZES = [(2, 5, 7, 3), (1, 1, 1, 1), (3, 2, 9, 8), (2, 6, 1, 16), (70, 1, 2, 32), (1, 90, 3, 20)]


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('biased', [False, True])
def test_equals_the_definition_with_every_gradient(size, biased, backend):
    b, h, w, c = size
    inputs = [tokens(b, h * w, 3 * c)[..., c : 2 * c], tokens(b, c, 3, 3), *([tokens(c)] * biased)]
    inputs = [x.requires_grad_() for x in inputs]
    bias = inputs[2] if biased else None
    outs = [dynamic_conv(*inputs[:2], (h, w), bias, backend), reference(*inputs[:2], (h, w), bias)]
    torch.testing.assert_close(*outs)
    for got, expected in zip(
        *(torch.autograd.grad(out, inputs, tokens(*out.shape)) for out in outs)
    ):
        torch.testing.assert_close(got, expected)


def test_each_map_has_its_own_filters():
    filters = torch.zeros(2, 1, 3, 3)
    filters[0, 0, 1, 1] = 1  # stays
    filters[1, 0, 1, 0] = 1  # takes what is to its left
    out = dynamic_conv(torch.arange(1.0, 7).repeat(2, 1)[..., None], filters, (2, 3))
    assert out[0, :, 0].tolist() == [1, 2, 3, 4, 5, 6]
    assert out[1, :, 0].tolist() == [0, 1, 2, 0, 4, 5]


@pytest.mark.parametrize(
    'shapes',
    [
        ((2, 7, 3), (2, 3, 3, 3), (3,)),
        ((2, 6, 3), (1, 3, 3, 3), (3,)),
        ((2, 6, 3), (2, 3, 3, 3), (4,)),
    ],
)
def test_shapes_are_checked(shapes):
    v, filters, bias = map(torch.zeros, shapes)
    with pytest.raises(ValueError, match=r'v must be \(B, H·W, C\).* for \(H, W\) = \(2, 3\)'):
        dynamic_conv(v, filters, (2, 3), bias)


def inputs(b: int, h: int, w: int, c: int, dtype=torch.float64) -> list[torch.Tensor]:
    shapes = (b, h * w, c), (b, c, 3, 3), (c,)
    return [tokens(*shape).to(dtype).requires_grad_() for shape in shapes]


def convolve(backend: str, hw: tuple[int, int] = (3, 4)):
    return lambda v, filters, bias: dynamic_conv(v, filters, hw, bias, backend)


def test_derivatives_of_every_order(backend):
    assert gradcheck(convolve(backend), inputs(2, 3, 4, 2))
    assert gradgradcheck(convolve(backend), inputs(2, 3, 4, 2))


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
def test_the_compiled_error_is_rounding(dtype, compiled):
    """The result and every gradient are sums in fp32 that are rounded once to ``dtype``.

    In any order, a sum of n terms in fp32 is within √n·eps·Σ|term| (Higham and Mary, 2019).
    """
    rough, hw = inputs(2, 40, 30, 33, dtype), (40, 30)
    grad = tokens(2, 1200, 33).to(dtype)
    exact = [x.double() for x in rough]
    magnitudes = [x.abs() for x in exact]
    results = []
    for leaves, g in (rough, grad), (exact, grad.double()), (magnitudes, grad.double().abs()):
        out = convolve(compiled, hw)(*leaves)
        results.append([out, *torch.autograd.grad(out, leaves, g)])
    terms = 10, 9, 1200, 2400  # of the result, and of the gradients of v, filters and bias
    for n, got, expected, magnitude in zip(terms, *results, strict=True):
        assert got.dtype == dtype
        rounding = torch.finfo(dtype).eps * expected.abs()
        bound = n**0.5 * torch.finfo(torch.float32).eps * magnitude + rounding
        assert ((got.double() - expected).abs() <= bound).all()


@pytest.mark.parametrize('size', [(0, 3, 4, 8), (2, 0, 4, 8), (2, 3, 0, 8), (2, 3, 4, 0)])
def test_empty_maps(size, compiled):
    v, filters, bias = inputs(*size)
    out = convolve(compiled, size[1:3])(v, filters, bias)
    assert out.shape == v.shape
    grads = torch.autograd.grad(out.sum(), (v, filters))
    assert [g.shape for g in grads] == [v.shape, filters.shape]


def test_any_strides(compiled):
    v = tokens(2, 8, 16, 9)[..., ::2].permute(0, 3, 2, 1).flatten(1, 2).requires_grad_()
    filters = tokens(3, 3, 8, 2).permute(3, 2, 1, 0).requires_grad_()
    grads = [tokens(2, 8, 80).mT, tokens(1, 1, 1).expand(2, 80, 8)]
    for grad in grads:
        got, expected = (
            torch.autograd.grad(fn(v, filters, (5, 16)), (v, filters), grad)
            for fn in (lambda *x: dynamic_conv(*x, backend=compiled), reference)
        )
        torch.testing.assert_close(got, expected)


def test_same_bits_with_any_number_of_threads(compiled):
    v, filters, _ = inputs(1, 70, 50, 16, torch.float32)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            out = dynamic_conv(v, filters, (70, 50), backend=compiled)
            results.append([out, *torch.autograd.grad(out.square().sum(), (v, filters))])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16])
def test_opcheck(dtype, compiled):
    v, filters, bias = inputs(2, 3, 4, 5, dtype)
    torch.library.opcheck(OPS.convolve_tokens, (v, filters, bias, 3, 4))
    torch.library.opcheck(OPS.correlate_tokens, (v, v.detach().square(), 3, 4))


V = torch.zeros(2, 6, 3)


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        ((V, V, None, 2, 3), r'filters must be \[2, 3, 3, 3\] .* Float on cpu, got \[2, 6, 3\]'),
        ((V, torch.zeros(2, 3, 3, 3).half(), None, 2, 3), 'filters must be .* got .* Half'),
        ((V, torch.zeros(2, 3, 3, 3), V[0, 0, :2], 2, 3), r'bias must be \[3\] .* got \[2\]'),
        ((V, V, None, 2, 4), r'v must be \(B, H·W, C\), got \[2, 6, 3\] for \(H, W\) = \(2, 4\)'),
        (
            (V.long(), V, None, 2, 3),
            'v must be of a floating dtype and on the CPU, got Long on cpu',
        ),
    ],
)
def test_bad_arguments_of_the_compiled_op(args, message, compiled):
    with pytest.raises(RuntimeError, match=message):
        OPS.convolve_tokens(*args)

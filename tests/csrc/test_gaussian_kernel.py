import pytest
import torch
from torch import Tensor

from soft_mm.ops.extension import missing
from soft_mm.ops.gaussian_kernel.extension import exact_gaussian_kernel
from soft_mm.ops.gaussian_kernel.reference import gaussian_kernel as reference

OPS = torch.ops.soft_mm
GPU = pytest.param('cuda', marks=pytest.mark.gpu)
DTYPES = [torch.float32, torch.float16, torch.bfloat16]

# Leading dimensions, N, m, d: full and partial tiles, one and several; split sums over columns.
SIZES = [
    ((2, 3), 49, 7, 32),
    ((), 1, 1, 1),
    ((2, 1), 65, 33, 17),
    ((3,), 130, 70, 128),
    ((2, 1, 3), 40, 65, 64),
    ((2,), 3, 1100, 40),
    ((1, 2), 200, 130, 33),
]


@pytest.fixture(params=['cpu', GPU])
def device(request) -> str:
    if request.param == 'cuda':
        request.getfixturevalue('gpu')
    if missing(request.param):
        pytest.skip(missing(request.param))
    return request.param


def squared_distance(q: Tensor, k: Tensor) -> Tensor:
    return (q.unsqueeze(-2) - k.unsqueeze(-3)).square().sum(-1)


def weighted_differences(weight: Tensor, factor: Tensor | None, q: Tensor, k: Tensor) -> Tensor:
    weight = weight if factor is None else weight * factor
    return (weight.unsqueeze(-1) * (k.unsqueeze(-3) - q.unsqueeze(-2))).sum(-2)


# The ops and their references.
FUNCTIONS = pytest.mark.parametrize(
    ('ours', 'theirs'),
    [
        pytest.param(exact_gaussian_kernel, reference, id='kernel'),
        pytest.param(lambda q, k: OPS.squared_distance(q, k), squared_distance, id='distance'),
    ],
)


def tokens(*shape: int, device: str, dtype=torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, dtype=torch.float64, generator=generator).to(device, dtype)


def pair(leading, n, m, d, device: str, dtype=torch.float64, offset=0.0) -> tuple[Tensor, Tensor]:
    """Random tokens whose squared distances are around 2."""
    return tuple(
        (tokens(*leading, count, d, device=device) * d**-0.5 + offset).to(dtype).requires_grad_()
        for count in (n, m)
    )


def with_gradients(fn, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """The result, then the gradient of each input, for one random gradient of the result."""
    result = fn(*inputs)
    grad = tokens(*result.shape, device=result.device, dtype=result.dtype)
    return [result.detach(), *torch.autograd.grad(result, inputs, grad)]


@FUNCTIONS
@pytest.mark.parametrize('size', SIZES)
def test_equals_the_reference_with_every_gradient(ours, theirs, size, device):
    inputs = pair(*size, device)
    torch.testing.assert_close(with_gradients(ours, inputs), with_gradients(theirs, inputs))


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('has_factor', [True, False])
def test_weighted_differences_equal_the_reference(size, has_factor, device):
    leading, n, m, _ = size
    q, k = (x.detach() for x in pair(*size, device))
    weight, factor = (tokens(*leading, n + i, m, device=device)[..., i:, :] for i in (0, 1))
    args = weight, factor if has_factor else None, q, k
    torch.testing.assert_close(OPS.weighted_differences(*args), weighted_differences(*args))


def worst(got: list[Tensor], exact: list[Tensor]) -> list[float]:
    return [(g.double() - e).abs().max().item() for g, e in zip(got, exact)]


@FUNCTIONS
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('offset', [0.0, 30.0])
@pytest.mark.parametrize('size', SIZES)
def test_error_is_at_most_twice_that_of_plain_pytorch(ours, theirs, dtype, offset, size, device):
    """An error of one rounding per term of the sum is always allowed."""
    _, n, m, d = size
    inputs = pair(*size, device, dtype, offset)
    exact = with_gradients(theirs, tuple(x.detach().double().requires_grad_() for x in inputs))
    plain, got = with_gradients(theirs, inputs), with_gradients(ours, inputs)
    assert all(x.dtype == dtype for x in got)
    for error, of_plain, value, terms in zip(
        worst(got, exact), worst(plain, exact), exact, (d, d + m, d + n)
    ):
        rounding = terms * torch.finfo(torch.float32).eps * value.abs().max().item()
        assert error <= 2 * max(of_plain, rounding)


@pytest.mark.parametrize('dtype', [torch.float64, *DTYPES])
def test_tokens_that_coincide_have_distance_zero(dtype, device):
    k = 10 * tokens(2, 70, 33, device=device, dtype=dtype) + 30
    assert OPS.squared_distance(k, k).diagonal(dim1=-2, dim2=-1).eq(0).all()
    kernel = exact_gaussian_kernel(k, k)
    assert kernel.diagonal(dim1=-2, dim2=-1).eq(1).all()
    assert kernel.max() <= 1


@pytest.mark.parametrize('offset', [-16, 16])
def test_moving_all_tokens_changes_no_bit(offset, device):
    """The result does not depend on how far the tokens are from the origin.

    The tokens are multiples of 1/4096 and 64 in number, so that their means, and the differences
    from these, are exact. The squares of the differences are not.
    """
    q, k = (
        (4096 * tokens(64, d, device=device)[:, :40]).round().div(4096).float() for d in (40, 41)
    )
    assert torch.equal(OPS.squared_distance(q + offset, k + offset), OPS.squared_distance(q, k))


@FUNCTIONS
@pytest.mark.parametrize('size', [((2,), 0, 5, 4), ((2,), 5, 0, 4), ((0, 3), 5, 2, 4)])
def test_empty_tensors(ours, theirs, size, device):
    inputs = pair(*size, device)
    torch.testing.assert_close(with_gradients(ours, inputs), with_gradients(theirs, inputs))


@FUNCTIONS
def test_any_strides(ours, theirs, device):
    q = tokens(2, 70, 3, 24, device=device).transpose(1, 2)[..., ::2].requires_grad_()
    k = tokens(2, 12, 3, 40, device=device).permute(0, 2, 3, 1).requires_grad_()
    torch.testing.assert_close(ours(q, k), theirs(q, k))
    grads = [
        tokens(2, 3, 40, 70, device=device).mT,
        tokens(2, 40, 3, 70, device=device).permute(0, 2, 3, 1),
        torch.ones(1, dtype=q.dtype, device=device).expand(2, 3, 70, 40),
    ]
    for grad in grads:
        torch.testing.assert_close(
            torch.autograd.grad(ours(q, k), (q, k), grad),
            torch.autograd.grad(theirs(q, k), (q, k), grad),
        )


def test_more_matrices_than_the_second_grid_dimension_allows(device):
    q, k = (x.detach() for x in pair((70_000,), 2, 1, 1, device))
    torch.testing.assert_close(exact_gaussian_kernel(q, k), reference(q, k))
    weight = tokens(70_000, 2, 1, device=device)
    torch.testing.assert_close(
        OPS.weighted_differences(weight, None, q, k), weighted_differences(weight, None, q, k)
    )


@pytest.mark.parametrize('device', [GPU], indirect=True)
def test_more_results_than_32_bit_indices_address(device):
    q = tokens(2**16, 1, device=device, dtype=torch.float16)
    k = tokens(2**15 + 1, 1, device=device, dtype=torch.float16)
    # The origin differs, and with it the error in fp32, which can turn the rounding to fp16.
    torch.testing.assert_close(
        exact_gaussian_kernel(q, k)[-1:], exact_gaussian_kernel(q[-1:], k), rtol=2**-10, atol=2**-24
    )


@FUNCTIONS
def test_same_bits_twice(ours, theirs, device):
    inputs = pair((2,), 130, 1100, 33, device, torch.float32)
    for first, second in zip(with_gradients(ours, inputs), with_gradients(ours, inputs)):
        assert torch.equal(first, second)


@FUNCTIONS
@pytest.mark.parametrize('dtype', DTYPES)
def test_autocast_changes_nothing(ours, theirs, dtype, device):
    inputs = pair((2,), 20, 5, 32, device, dtype)
    outside = with_gradients(ours, inputs)
    with torch.autocast(device, torch.bfloat16):
        inside = with_gradients(ours, inputs)
    assert all(torch.equal(a, b) for a, b in zip(inside, outside))


@FUNCTIONS
def test_a_second_derivative_fails(ours, theirs, device):
    q, k = pair((), 5, 3, 4, device)
    (grad,) = torch.autograd.grad(ours(q, k).sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match='differentiated once only'):
        grad.sum().backward()


@pytest.mark.parametrize('name', ['squared_distance', 'exact_gaussian_kernel'])
@pytest.mark.parametrize('dtype', [torch.float64, *DTYPES])
def test_opcheck(name, dtype, device):
    torch.library.opcheck(getattr(OPS, name), pair((2,), 5, 3, 4, device, dtype))


@pytest.mark.parametrize('has_factor', [True, False])
def test_opcheck_of_weighted_differences(has_factor, device):
    q, k = (x.detach() for x in pair((2,), 5, 3, 4, device))
    weight = tokens(2, 3, 5, device=device).mT
    torch.library.opcheck(OPS.weighted_differences, (weight, weight if has_factor else None, q, k))


@FUNCTIONS
def test_compiles_without_a_graph_break(ours, theirs, device):
    inputs = pair((2,), 20, 5, 32, device, torch.float32)
    compiled = torch.compile(ours, fullgraph=True, backend='aot_eager')
    torch.testing.assert_close(with_gradients(compiled, inputs), with_gradients(ours, inputs))


class Kernel(torch.nn.Module):
    def forward(self, q: Tensor, k: Tensor) -> Tensor:
        return exact_gaussian_kernel(q, k)


def test_exports(device):
    q, k = (x.detach() for x in pair((2,), 20, 5, 32, device))
    n = torch.export.Dim('n')
    exported = torch.export.export(Kernel(), (q, k), dynamic_shapes=({1: n}, None))
    torch.testing.assert_close(exported.module()(q[:, :9], k), exact_gaussian_kernel(q[:, :9], k))


X = torch.zeros(2, 5, 4)


@pytest.mark.parametrize(
    ('q', 'k', 'message'),
    [
        (X[0, 0], X, r'q must be \(\.\.\., N, d\), got \[4\]'),
        (X, X[0], r'k must be \(\.\.\., m, d\) .* \[2, 5, 4\], got \[5, 4\]'),
        (X, X[:1], r'the leading dimensions and d of q, \[2, 5, 4\], got \[1, 5, 4\]'),
        (X, X[..., :3], r'the leading dimensions and d of q, \[2, 5, 4\], got \[2, 5, 3\]'),
        (X[..., :0], X[..., :0], 'head width d must be from 1 to 128, got 0'),
        (torch.zeros(3, 129), torch.zeros(3, 129), 'head width d must be from 1 to 128, got 129'),
        (X.long(), X.long(), 'q must be of dtype Double, Float, Half or BFloat16, got Long'),
        (X, X.half(), 'k must have the dtype of q, Float, got Half'),
    ],
)
def test_bad_tokens(q, k, message, device):
    for op in (exact_gaussian_kernel, OPS.squared_distance):
        with pytest.raises(RuntimeError, match=message):
            op(q.to(device), k.to(device))


@pytest.mark.parametrize(
    ('weight', 'factor', 'message'),
    [
        (X, None, r'weight must be \(\.\.\., N, m\).* \[2, 5, 5\], got \[2, 5, 4\]'),
        (X.new_zeros(2, 5, 5), X, r'factor must be .* \[2, 5, 5\], got \[2, 5, 4\]'),
        (X.new_zeros(2, 5, 5).double(), None, 'weight must have the dtype of q, Float, got Double'),
    ],
)
def test_bad_weights(weight, factor, message, device):
    with pytest.raises(RuntimeError, match=message):
        OPS.weighted_differences(
            *(x if x is None else x.to(device) for x in (weight, factor, X, X))
        )


@pytest.mark.parametrize('device', [GPU], indirect=True)
def test_two_devices(device):
    with pytest.raises(RuntimeError, match='k must be on the device of q, cuda:0, got cpu'):
        exact_gaussian_kernel(X.to(device), X)

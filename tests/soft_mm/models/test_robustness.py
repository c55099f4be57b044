"""Inputs, dtypes, copies and modes that any PyTorch layer supports, on a small model of each family."""

import copy
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

import soft_mm
from soft_mm.models.backbones import Backbone
from soft_mm.models.layers import PositionEmbed
from soft_mm.ops import set_backend

STAGES = dict(channels=(16, 32, 48, 64), num_heads=(2, 4, 6, 8), depths=(1, 1, 1, 1))
DEIT = dict(type='InLineDeiT', arch=dict(channels=(32,), num_heads=(4,), depths=(2,)))
MODELS = {
    'SOFT': dict(type='SOFT', arch=dict(STAGES, kernel_sizes=(9, 5, 3))),
    'SOFT-Norm': dict(type='SOFT', arch=dict(STAGES, kernel_sizes=(9, 5, 3)), sym_norm=True),
    'alpha of a batch': dict(
        type='SOFT', arch=dict(STAGES, kernel_sizes=(9, 5, 3)), sym_norm=True, alpha_scope='batch'
    ),
    'InLineDeiT': DEIT,
    'pyramid': dict(DEIT, pyramid=True),
    'InLinePVT': dict(type='InLinePVT', arch=dict(STAGES, mlp_ratios=(8, 8, 4, 4))),
    'InLineSwin': dict(
        type='InLineSwin',
        arch=dict(STAGES, depths=(2, 2, 2, 2), inline_depths=(2, 2, 0, 0)),
        window_size=2,
        inline_window_size=5,
    ),
    'InLineCSwin': dict(type='InLineCSwin', arch=STAGES, stripe_size=3),
}
SIZE = (96, 70)  # resizes the position embeddings, and pads the windows


@pytest.fixture(params=MODELS)
def name(request) -> str:
    return request.param


def build(name: str) -> Backbone:
    torch.manual_seed(0)
    kwargs = dict(MODELS[name])
    return getattr(soft_mm, kwargs.pop('type'))(img_size=64, **kwargs).eval()


def image(*size: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*size, dtype=torch.float32, generator=generator)


def run(model: Backbone, x: Tensor) -> list[Tensor]:
    """The maps, and the gradients of the image and of all parameters."""
    x = x.detach().requires_grad_()
    model.zero_grad()
    maps = model(x)
    sum(m.square().sum() for m in maps).backward()
    return [*maps, x.grad, *(p.grad for p in model.parameters())]


@pytest.mark.parametrize(
    ('training', 'backend'), [(False, None), (True, None), (False, 'torch'), (False, 'reference')]
)
def test_an_empty_batch_has_empty_maps_and_zero_gradients(name, training, backend):
    model = build(name)
    shapes = [(0, *m.shape[1:]) for m in model(image(1, 3, *SIZE))]
    model.train(training)
    before = copy.deepcopy(model.state_dict())
    with set_backend(backend):
        results = run(model, image(0, 3, *SIZE))
    assert [m.shape for m in results[: len(shapes)]] == shapes
    for grad in results[len(shapes) + 1 :]:
        # From torch 2.15 on, PyTorch's attention of no tokens gives its mask no gradient.
        assert grad is None or not grad.any()
    for key, t in model.state_dict().items():
        assert torch.equal(t, before[key]) or key.endswith('num_batches_tracked')


def layouts(x: Tensor) -> Iterator[Tensor]:
    """Images with the same values as x, but other strides."""
    yield x.contiguous(memory_format=torch.channels_last)
    yield x.mT.contiguous().mT
    yield x.repeat_interleave(2, -1)[..., ::2]
    yield x.flip(1).contiguous().flip(1)
    yield x[0].expand_as(x)


def test_any_memory_layout(name):
    model = build(name)
    x = image(1, 3, *SIZE).repeat(2, 1, 1, 1)
    expected = run(model, x)
    largest = max(t.abs().max() for t in expected)
    for other in layouts(x):
        # Convolutions may sum in another order.
        torch.testing.assert_close(run(model, other), expected, rtol=1e-4, atol=1e-5 * largest)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision(name, dtype):
    """Each of some 30 layers rounds its output, by up to eps / 2 of it."""
    if (name, dtype) == ('pyramid', torch.float16) and torch.__version__ < (2, 6):
        pytest.skip('this torch does not pad fp16 on a CPU')
    model = build(name)
    x = image(2, 3, *SIZE)
    with torch.no_grad():
        expected = model(x)
    results = run(model.to(dtype), x.to(dtype))
    for got, exact in zip(results, expected):
        assert got.dtype == dtype
        error = (got - exact).norm() / exact.norm()
        assert error < 30 * torch.finfo(dtype).eps
    assert all(t.dtype == dtype for t in results)
    assert all(t.isfinite().all() for t in results)


@pytest.mark.parametrize('mode', [torch.no_grad, torch.inference_mode])
def test_copies_of_a_model_that_has_predicted(name, mode):
    model, x = build(name), image(2, 3, *SIZE)
    expected = run(model, x)
    with mode():
        maps = model(x)
    for other in copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model:
        torch.testing.assert_close(run(other, x), expected, rtol=0, atol=0)
        with mode():
            torch.testing.assert_close(other(x), maps, rtol=0, atol=0)
    for got, exact in zip(maps, expected):
        torch.testing.assert_close(got, exact.detach(), rtol=1e-5, atol=1e-5)


def test_meta_device(name):
    """A model without data has maps without data; it can be filled with a checkpoint."""
    expected = build(name)
    with torch.device('meta'):
        model = build(name)
        maps = model(torch.empty(2, 3, *SIZE))
    assert {t.device.type for t in (*model.state_dict().values(), *maps)} == {'meta'}
    x = image(2, 3, *SIZE)
    assert [m.shape for m in maps] == [m.shape for m in expected(x)]
    model.to_empty(device='cpu').load_state_dict(expected.state_dict())
    torch.testing.assert_close(model(x), expected(x), rtol=0, atol=0)


@pytest.fixture
def deterministic():
    """Operators without a deterministic implementation raise; new memory is filled with NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def test_deterministic_algorithms(name, deterministic):
    model, x = build(name).train(), image(2, 3, *SIZE)
    first, second = (run(copy.deepcopy(model), x) for _ in range(2))
    assert all(t.isfinite().all() for t in first)
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.fixture
def double_precision():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_default_dtype_of_a_new_model(name, double_precision):
    model = build(name)
    results = run(model, image(2, 3, *SIZE).double())
    assert all(t.dtype == torch.float64 for t in results)
    assert all(t.isfinite().all() for t in results)


def test_default_dtype_does_not_matter_to_a_model(name, request):
    model, x = build(name), image(2, 3, *SIZE)
    expected = run(model, x)
    request.getfixturevalue('double_precision')
    results = run(model, x)
    assert all(t.dtype == torch.float32 for t in results)
    torch.testing.assert_close(results, expected, rtol=1e-5, atol=1e-5)


def test_threads_share_a_model(name):
    model = build(name)
    images = [image(1, 3, *size) for size in ((64, 64), SIZE, (70, 96), (128, 64))] * 4

    @torch.no_grad()
    def predict(x: Tensor) -> tuple[Tensor, ...]:
        return model(x)

    expected = [predict(x) for x in images]
    with ThreadPoolExecutor(4) as threads:
        for maps, exact in zip(threads.map(predict, images), expected):
            torch.testing.assert_close(maps, exact, rtol=0, atol=0)


@torch.no_grad()
def test_another_size_while_a_position_embedding_is_looked_up(monkeypatch):
    embed, x = PositionEmbed(2, (4, 4)), torch.zeros(1, 2, 6, 6)
    expected = embed(x)

    def interrupted(*tensors: Tensor) -> bool:
        monkeypatch.undo()
        embed(torch.zeros(1, 2, 3, 3))  # as another thread may
        return torch.equal(*tensors)

    monkeypatch.setattr(torch, 'equal', interrupted)
    torch.testing.assert_close(embed(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ('images', 'message'),
    [
        ([torch.zeros(1, 3, 64, 64)] * 2, 'got a list'),
        (torch.zeros(3, 64, 64), r'got \(3, 64, 64\)'),
        (torch.zeros(1, 4, 64, 64), 'in_channels=3, got images with 4 channels'),
    ],
)
def test_images_are_one_tensor(name, images, message):
    with pytest.raises(ValueError, match=message):
        build(name)(images)

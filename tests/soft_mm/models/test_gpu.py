"""Every backbone on a GPU: the CPU's numbers, autocast, and no waiting for the GPU.

The sizes make SOFT's landmarks few (49, one launch), some hundred and, on the largest image, 1050.
"""

import copy
import itertools
from importlib import import_module

import pytest
import torch
from torch import Tensor, nn

from soft_mm import SOFT, InLineCSwin, InLineDeiT, InLinePVT, InLineSwin

pytestmark = pytest.mark.gpu
FAMILIES = {
    'SOFT': lambda: SOFT(arch='tiny'),
    'SOFT-Norm': lambda: SOFT(arch='tiny', sym_norm=True),
    'InLineDeiT': lambda: InLineDeiT(arch='tiny'),
    'InLinePVT': lambda: InLinePVT(arch='tiny'),
    'InLineSwin': lambda: InLineSwin(arch='tiny'),
    'windows': lambda: InLineSwin(arch='tiny', inline_window_size=14),
    'InLineCSwin': lambda: InLineCSwin(arch='tiny'),
}
# Attentions that are compared with these, and InLine's ablations.
VARIANTS = {
    'softmax': lambda: SOFT(arch='tiny', attention='softmax'),
    'Linformer': lambda: SOFT(arch='tiny', attention='linformer'),
    'Performer': lambda: SOFT(arch='tiny', attention='performer'),
    'Nyströmformer': lambda: SOFT(arch='tiny', attention='nystromformer'),
    'leaky ReLU': lambda: InLinePVT(arch='tiny', kernel_function='leaky_relu'),
    'division': lambda: InLinePVT(
        arch='tiny', kernel_function='affine_relu', normalization='division'
    ),
    'no convolution': lambda: InLineSwin(arch='tiny', inline_window_size=14, dynamic_conv=False),
}
SIZES = [(64, 64), (288, 288), (97, 205)]
CASES = [*itertools.product(FAMILIES, SIZES), *itertools.product(VARIANTS, SIZES[2:])]
# In units of the largest value: rounding of fp32 through all layers, and of TF32 in SOFT's product.
OUTPUT, GRADIENT = 1e-3, 1e-2
KERNELS = (
    'dynamic_conv',
    'gaussian_kernel',
    'gaussian_product',
    'inline_attention',
    'newton_inverse',
    'newton_solve',
    'nystrom_attention',
)


@pytest.fixture(autouse=True)
def exact_convolutions(gpu, monkeypatch):
    """cuDNN and cuBLAS compute in fp32 as the CPU does."""
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)
    monkeypatch.setattr(torch.backends.cuda.matmul, 'allow_tf32', False)


def assert_near(ours: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    largest = max(t.abs().max().item() for t in expected)
    for a, b in zip(ours, expected, strict=True):
        assert (a.cpu().double() - b.cpu().double()).abs().max() <= tolerance * largest


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return (FAMILIES | VARIANTS)[name]().eval()  # no stochastic depth


def image(*size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(0))


def maps_and_gradients(model: nn.Module, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    model.zero_grad()
    maps = model(x)
    sum(m.float().square().mean() for m in maps).backward()
    return list(maps), [p.grad for p in model.parameters()]


def on_gpu(model: nn.Module, gpu: str) -> nn.Module:
    return copy.deepcopy(model).to(gpu)


def compiled() -> int:
    """Number of compiled Triton kernels in this process."""
    modules = [import_module(f'soft_mm.ops.{name}.triton_kernels') for name in KERNELS]
    kernels = [getattr(x, 'fn', x) for module in modules for x in vars(module).values()]
    return sum(
        len(caches[0]) for x in kernels for caches in getattr(x, 'device_caches', {}).values()
    )


@pytest.mark.parametrize(('name', 'size'), CASES)
def test_the_numbers_of_the_cpu(name, size, gpu):
    model, x = build(name), image(2, 3, *size)
    got = maps_and_gradients(on_gpu(model, gpu), x.to(gpu))
    expected = maps_and_gradients(model, x)
    assert_near(got[0], expected[0], OUTPUT)
    assert_near(got[1], expected[1], GRADIENT)


def test_1050_landmarks(gpu):
    model = SOFT(arch='tiny', sym_norm=True, img_size=(800, 1344)).eval()
    x = image(1, 3, 800, 1344)
    with torch.no_grad():
        assert_near(list(on_gpu(model, gpu)(x.to(gpu))), list(model(x)), OUTPUT)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('name', FAMILIES | VARIANTS)
def test_autocast(name, dtype, gpu):
    """Errors of a few roundings, not of sums in half precision."""
    model, x = build(name).to(gpu), image(2, 3, 97, 205).to(gpu)
    maps, gradients = maps_and_gradients(model, x)
    exact = maps, [grad.clone() for grad in gradients]
    with torch.autocast('cuda', dtype):
        got = maps_and_gradients(model, x)
    for ours, expected, roundings in zip(got, exact, (32, 128)):
        assert all(t.isfinite().all() for t in ours)
        assert_near(ours, expected, roundings * torch.finfo(dtype).eps)


@pytest.mark.parametrize(('name', 'size'), CASES)
def test_the_host_never_waits(name, size, gpu):
    model, x = build(name).to(gpu), image(2, 3, *size).to(gpu)
    with torch.autocast('cuda', torch.bfloat16):
        maps_and_gradients(model, x)  # compiles and tunes kernels
    torch.cuda.set_sync_debug_mode('error')
    try:
        with torch.autocast('cuda', torch.bfloat16):
            maps_and_gradients(model, x)
    finally:
        torch.cuda.set_sync_debug_mode('default')


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('name', FAMILIES)
def test_graph_capture(name, size, gpu):
    model, x = build(name).to(gpu), image(2, 3, *size).to(gpu)
    with torch.no_grad():
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            model(x)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            maps = model(x)
        x.copy_(image(2, 3, *size).flip(0))
        graph.replay()
        assert_near(list(maps), list(model(x)), OUTPUT)


@pytest.mark.parametrize('name', FAMILIES)
def test_channels_last(name, gpu):
    model, x = build(name).to(gpu), image(2, 3, 97, 205).to(gpu)
    with torch.no_grad():
        got = model.to(memory_format=torch.channels_last)(
            x.contiguous(memory_format=torch.channels_last)
        )
        assert_near(list(got), list(build(name).to(gpu)(x)), OUTPUT)


@pytest.mark.parametrize('name', FAMILIES)
def test_another_size_compiles_nothing(name, gpu):
    """The first two sizes differ in what a kernel may be specialised for."""
    model, counts = build(name).to(gpu), []
    for size in (256, 320), (272, 352), (288, 416):
        with torch.autocast('cuda', torch.bfloat16):
            maps_and_gradients(model, image(1, 3, *size).to(gpu))
        counts.append(compiled())
    assert 0 < counts[1] == counts[2]


@pytest.mark.parametrize('name', FAMILIES)
def test_compiled_for_two_sizes(name, gpu):
    """One graph without breaks, in Inductor, for every size of the image."""
    torch._dynamo.reset()
    model = build(name).to(gpu)
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for size in SIZES[1:]:
            x = image(2, 3, *size).to(gpu)
            assert_near(list(compiled(x)), list(model(x)), OUTPUT)

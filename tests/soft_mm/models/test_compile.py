"""Every backbone compiles and exports without a graph break, and gives the same numbers."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS as REGISTRY
from torch import Tensor, nn
from torch._guards import TracingContext
from torch._subclasses.fake_tensor import FakeTensorMode

import soft_mm
from soft_mm.ops.backend import HAS_TRITON

RETINANET = Path(__file__).parents[3] / 'configs/_base_/models/retinanet_fpn.py'
STAGES = dict(channels=(16, 32, 48, 64), num_heads=(2, 4, 6, 8), depths=(1, 1, 1, 1))
SOFT = dict(type='SOFT', arch=dict(STAGES, kernel_sizes=(9, 5, 3)))
MODELS = {
    'SOFT': SOFT,
    'SOFT-Norm': dict(SOFT, sym_norm=True),
    'iteration': dict(SOFT, sym_norm=True, solver='iteration'),
    'ridge': dict(SOFT, sym_norm=True, solver='ridge'),
    'alpha of a batch': dict(SOFT, sym_norm=True, alpha_scope='batch'),
    'average landmarks': dict(SOFT, landmarks='avg_pool'),
    'random landmarks': dict(SOFT, landmarks='random'),
    'few landmarks': dict(SOFT, num_landmarks=4),
    'softmax': dict(SOFT, attention='softmax'),
    'Linformer': dict(SOFT, attention='linformer', num_landmarks=4),
    'Performer': dict(SOFT, attention='performer'),
    'Nyströmformer': dict(SOFT, attention='nystromformer'),
    'InLineDeiT': dict(type='InLineDeiT', arch=dict(channels=(32,), num_heads=(4,), depths=(2,))),
    'pyramid': dict(
        type='InLineDeiT', pyramid=True, arch=dict(channels=(32,), num_heads=(4,), depths=(2,))
    ),
    'InLinePVT': dict(type='InLinePVT', arch=dict(STAGES, mlp_ratios=(8, 8, 4, 4))),
    'InLineSwin': dict(
        type='InLineSwin',
        window_size=2,
        inline_window_size=5,
        arch=dict(STAGES, depths=(2, 1, 2, 1), inline_depths=(2, 1, 0, 0)),
    ),
    'InLineCSwin': dict(type='InLineCSwin', arch=STAGES, stripe_size=3),
}
FAMILIES = ('SOFT-Norm', 'InLineDeiT', 'InLinePVT', 'InLineSwin', 'InLineCSwin')
LIKE_PVT = ('SOFT-Norm', 'few landmarks', 'InLinePVT')  # have four stages, as PVT
ONE_GRAPH = (*LIKE_PVT, 'InLineDeiT')  # a single graph serves all sizes
RIVALS = ('softmax', 'Linformer', 'Performer', 'Nyströmformer')


def names(short: tuple[str, ...], every=tuple(MODELS)) -> list:
    """Parameters for every model; those that are not in the short list are long tests."""
    return [pytest.param(name, marks=() if name in short else pytest.mark.long) for name in every]


def build(name: str, mode: str) -> nn.Module:
    torch.manual_seed(0)
    kwargs = dict(MODELS[name])
    return getattr(soft_mm, kwargs.pop('type'))(img_size=64, **kwargs).train(mode == 'training')


def image(*size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(0))


def with_gradients(
    model: nn.Module, call, x: Tensor, dynamic: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the maps, and the gradients of the image and of all parameters."""
    x = x.clone().requires_grad_()
    if dynamic:
        torch._dynamo.mark_dynamic(x, (2, 3))
    model.zero_grad()
    torch.manual_seed(1)
    maps = call(x)
    sum(m.square().mean() for m in maps).backward()
    return list(maps), [x.grad, *(p.grad for p in model.parameters())]


def assert_same(ours: list[Tensor], expected: list[Tensor], rtol: float) -> None:
    """Compare relative to the largest value of all, as some gradients are 0 up to rounding."""
    atol = rtol * max(t.abs().max().item() for t in expected)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def check(
    name: str,
    mode: str,
    backend: str,
    sizes: list[tuple[int, int]],
    dynamic: bool = False,
    **kwargs,
) -> None:
    torch._dynamo.reset()
    model = build(name, mode)
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend=backend, **kwargs)
    for size in sizes:
        x = image(2, 3, *size)
        expected = with_gradients(model, model, x, dynamic)
        ours = with_gradients(compiled, compiled, x, dynamic)
        assert_same(ours[0], expected[0], 1e-4)
        assert_same(ours[1], expected[1], 1e-3)


@pytest.mark.parametrize('mode', ['eval', 'training'])
@pytest.mark.parametrize('name', names((*FAMILIES, 'ridge', 'few landmarks')))
def test_compiles_without_a_graph_break(name, mode):
    check(name, mode, 'aot_eager', [(97, 70)])


@pytest.mark.skipif(not HAS_TRITON, reason='there is no Triton, or one before 3.4')
@pytest.mark.parametrize('name', names(FAMILIES, (*FAMILIES, *RIVALS)))
def test_compiles_for_a_gpu_without_a_graph_break(name, overwritten_parameters):
    """Tensors without data take the way of a GPU without one."""
    torch._dynamo.reset()
    graphs = []

    def backend(graph: torch.fx.GraphModule, _) -> Callable:
        graphs.append(graph)
        return graph

    model = build(name, 'eval')
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        model.to_empty(device='cuda')
        maps = torch.compile(model, fullgraph=True, backend=backend)(
            torch.empty(1, 3, 97, 70, device='cuda')
        )
    assert {x.device.type for x in maps} == {'cuda'}
    (graph,) = graphs
    called = {node.target for node in graph.graph.nodes}
    if name in FAMILIES:
        ops = torch.ops.soft_mm
        assert (
            ops.landmark_solve if name == 'SOFT-Norm' else ops.inline_attention
        ).default in called


traces_choices = pytest.mark.skipif(
    torch.__version__ < (2, 6), reason='this torch traces no choice by a size'
)
# The position embeddings fit the last size, which must be no case of its own.
SIZES = [(161, 203), (203, 190), (64, 190)]


@traces_choices
@pytest.mark.parametrize('name', names(('SOFT-Norm', 'InLineDeiT'), ONE_GRAPH))
def test_one_graph_for_all_sizes(name):
    with torch._dynamo.config.patch(error_on_recompile=True):
        check(name, 'training', 'aot_eager', SIZES, dynamic=True)


@pytest.mark.long
@pytest.mark.parametrize('name', ['InLineSwin', 'InLineCSwin', 'Nyströmformer'])
def test_dynamic_sizes(name):
    """Windows and pooling cells that divide the feature map's sides are a case of their own."""
    check(name, 'training', 'aot_eager', SIZES, dynamic=True)


def trace(model: nn.Module) -> tuple[int, int]:
    """Number of nodes of the graphs for symbolic sizes, and of their guards on sizes."""
    torch._dynamo.reset()
    nodes, guards = [], []

    def backend(graph: torch.fx.GraphModule, _) -> Callable:
        nodes.extend(graph.graph.nodes)
        env = TracingContext.get().fake_mode.shape_env
        guards.extend(env.guards if env else ())
        return graph

    with torch.no_grad():
        torch.compile(model.eval(), backend=backend, dynamic=True)(image(1, 3, 161, 203))
    return len(nodes), len(guards)


@pytest.fixture(scope='module')
def trace_of_pvt() -> tuple[int, int]:
    backbones = pytest.importorskip('mmdet.models.backbones')
    channels, heads, depths = (list(STAGES[key]) for key in ('channels', 'num_heads', 'depths'))
    return trace(
        backbones.PyramidVisionTransformer(
            pretrain_img_size=64,
            embed_dims=channels[0] // heads[0],
            num_heads=heads,
            num_layers=depths,
        )
    )


@traces_choices
@pytest.mark.parametrize('name', LIKE_PVT)
def test_symbolic_sizes_are_as_simple_as_those_of_pvt(name, trace_of_pvt):
    """Time to compile grows with both; PVT has no landmarks and no convolution of the values."""
    nodes, guards = trace(build(name, 'eval'))
    assert nodes <= 2 * trace_of_pvt[0]
    assert guards <= trace_of_pvt[1]


@traces_choices
@pytest.mark.parametrize('name', LIKE_PVT)
@torch.no_grad()
def test_one_graph_for_all_sizes_of_a_detector(name):
    """In a batch: for a single image, a CPU's convolution makes small maps a case of their own."""
    pytest.importorskip('mmdet')
    cfg = Config.fromfile(RETINANET).model
    cfg.backbone = dict(MODELS[name], type=f'soft_mm.{MODELS[name]["type"]}', img_size=64)
    cfg.neck.update(in_channels=list(STAGES['channels']), out_channels=16)
    cfg.bbox_head.update(in_channels=16, feat_channels=16, stacked_convs=1)
    detector = REGISTRY.build(cfg).eval()
    torch._dynamo.reset()
    compiled = torch.compile(detector, backend='eager', fullgraph=True, dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for size in SIZES:
            x = image(2, 3, *size)
            for ours, expected in zip(compiled(x), detector(x), strict=True):
                assert_same(ours, expected, 1e-4)


@pytest.mark.long
@pytest.mark.parametrize('mode', ['eval', 'training'])
@pytest.mark.parametrize('name', FAMILIES)
def test_inductor(name, mode):
    check(name, mode, 'inductor', [(97, 70)])


@pytest.mark.long
@pytest.mark.parametrize('name', ONE_GRAPH)
@torch.no_grad()
def test_inductor_predicts_for_any_size(name):
    torch._dynamo.reset()
    model = build(name, 'eval')
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, dynamic=True)
    for size in SIZES[:2]:
        x = image(2, 3, *size)
        assert_same(list(compiled(x)), list(model(x)), 1e-4)


@pytest.mark.long
@pytest.mark.parametrize('name', ONE_GRAPH)
def test_inductor_trains_for_any_size(name):
    """On a CPU, it cannot order symbolic strides for the layouts that it prefers; see the docs."""
    options = {'layout_optimization': False}
    check(name, 'training', 'inductor', SIZES[:2], dynamic=True, options=options)


@pytest.mark.skipif(torch.__version__ < (2, 7), reason='torch.export is too young')
@pytest.mark.parametrize(
    'name',
    names(('SOFT-Norm', 'InLineDeiT'), (*FAMILIES, *RIVALS, 'ridge', 'few landmarks', 'pyramid')),
)
@torch.no_grad()
def test_exports_for_any_size(name):
    """The program has PyTorch's operators only, so that it runs without soft_mm."""
    model = build(name, 'eval')
    dynamic = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    program = torch.export.export(model, (image(1, 3, 161, 203),), dynamic_shapes=(dynamic,))
    assert not [node for node in program.graph.nodes if 'soft_mm' in str(node.target)]
    # The guards check strides, which the graph does not use.
    exported = program.module(check_guards=False)
    for size in (161, 203), (203, 161), (320, 448), (128, 128):
        x = image(1, 3, *size)
        assert_same(list(exported(x)), list(model(x)), 1e-4)

"""Layers whose calls are observed or changed are called; only plain ones are replaced by ops."""

import copy
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.ao import quantization
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrizations, prune
from torch.utils.flop_counter import FlopCounterMode

import soft_mm
from soft_mm.models.layers import MLP
from soft_mm.models.layers.plain import is_plain
from soft_mm.ops.mlp import tiled

STAGES = dict(channels=(16, 32, 48, 64), num_heads=(2, 4, 6, 8), depths=(1, 1, 1, 1))
SMALL = {
    'SOFT': dict(arch=dict(STAGES, kernel_sizes=(9, 5, 3)), sym_norm=True),
    'InLineDeiT': dict(arch=dict(channels=(16,), num_heads=(2,), depths=(2,))),
    'InLinePVT': dict(arch=dict(STAGES, mlp_ratios=(8, 8, 4, 4))),
    'InLineSwin': dict(
        arch=dict(STAGES, inline_depths=(1, 1, 0, 0)), window_size=2, inline_window_size=5
    ),
    'InLineCSwin': dict(arch=STAGES, stripe_size=3),
}


@pytest.fixture(params=SMALL)
def model(request, monkeypatch) -> nn.Module:
    """A small model that uses ops in place of all plain layers that it can, in fp64."""
    monkeypatch.setattr(tiled, 'WORTHWHILE', 0)
    torch.manual_seed(0)
    return getattr(soft_mm, request.param)(img_size=64, **SMALL[request.param]).double()


def image() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 96, 128, dtype=torch.float64, generator=generator)


def layers_of(model: nn.Module, *types: type) -> dict[str, nn.Module]:
    return {name: m for name, m in model.named_modules() if isinstance(m, types)}


def run(model: nn.Module) -> tuple[Tensor, ...]:
    """Run the model forward and backward."""
    model.zero_grad()
    maps = model(image())
    sum(m.square().mean() for m in maps).backward()
    return maps


def assert_same(model: nn.Module, other: nn.Module) -> None:
    """Compare the maps and the gradients of all parameters."""
    torch.testing.assert_close(run(model), run(other), rtol=1e-8, atol=1e-8)
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-6, atol=1e-8, msg=name)


@pytest.mark.parametrize(
    'register',
    ['register_forward_hook', 'register_forward_pre_hook', 'register_full_backward_hook'],
)
def test_hooks_fire_once_and_change_nothing(model, register):
    hooked = copy.deepcopy(model)
    layers = layers_of(hooked, nn.Linear, nn.Conv1d, nn.Conv2d)
    fired = Counter()
    for name, layer in layers.items():
        getattr(layer, register)(lambda *_, name=name: fired.update([name]))
    maps = run(hooked)
    assert fired == Counter(layers.keys())
    assert maps[0].requires_grad
    assert_same(hooked, model)


class LoRA(nn.Module):
    """Low-rank adaptation of a linear layer (arXiv 2106.09685)."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.Parameter(torch.randn(2, base.in_features).to(base.weight))
        self.b = nn.Parameter(torch.randn(base.out_features, 2).to(base.weight))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.a.T @ self.b.T

    @property
    def weight(self) -> Tensor:
        return self.base.weight + self.b @ self.a


def add_lora(model: nn.Module) -> None:
    for name in layers_of(model, nn.Linear):
        parent, _, child = name.rpartition('.')
        if child in ('q', 'v', 'qkv', 'proj', 'fc1', 'fc2'):
            setattr(model.get_submodule(parent), child, LoRA(model.get_submodule(name)))


def add_weight_norm(model: nn.Module) -> None:
    for layer in layers_of(model, nn.Linear, nn.Conv1d, nn.Conv2d).values():
        parametrizations.weight_norm(layer)


def prune_half(model: nn.Module) -> None:
    for layer in layers_of(model, nn.Linear, nn.Conv2d).values():
        prune.l1_unstructured(layer, 'weight', 0.5)


@pytest.mark.parametrize('adapt', [add_lora, add_weight_norm, prune_half])
def test_adapted_layers_equal_plain_ones_with_the_adapted_weights(model, adapt):
    adapted = copy.deepcopy(model)
    adapt(adapted)
    with torch.no_grad():  # as a training step would; pruned weights follow in the next call
        for p in adapted.parameters():
            p.mul_(1.25)
    model.load_state_dict(adapted.state_dict(), strict=False)
    effective = {}
    for name, layer in layers_of(model, nn.Linear, nn.Conv1d, nn.Conv2d).items():
        other = adapted.get_submodule(name)
        if isinstance(other, LoRA):
            layer.bias = other.base.bias
        if hasattr(other, 'weight_orig'):
            effective[name] = other.weight_orig * other.weight_mask
        elif type(other) is not type(layer):
            effective[name] = other.weight
        if name in effective:
            layer.weight.data = effective[name].detach()
    assert len(effective) >= 8
    torch.testing.assert_close(run(adapted), run(model), rtol=1e-8, atol=1e-8)
    for name, weight in effective.items():
        other = adapted.get_submodule(name)
        adapters = [p for n, p in other.named_parameters() if n != 'bias' and p.requires_grad]
        expected = torch.autograd.grad(weight, adapters, model.get_submodule(name).weight.grad)
        for p, grad in zip(adapters, expected, strict=True):
            torch.testing.assert_close(p.grad, grad, rtol=1e-6, atol=1e-8)


@pytest.mark.filterwarnings('ignore:torch.ao.quantization:DeprecationWarning')
def test_quantisation_aware_training_observes_every_layer(model):
    model = model.float().train()
    model.qconfig = quantization.get_default_qat_qconfig('x86')
    quantized = quantization.prepare_qat(model)
    maps = quantized(image().float())
    layers = layers_of(quantized, nn.Linear, nn.Conv2d)
    assert all(type(layer).__module__.startswith('torch.ao.') for layer in layers.values())
    for layer in layers.values():
        for observer in layer.activation_post_process, layer.weight_fake_quant:
            assert observer.activation_post_process.min_val.isfinite().all()
    assert not torch.equal(maps[-1], model(image().float())[-1])
    maps[-1].sum().backward()
    assert all(layer.weight.grad.isfinite().all() for layer in layers.values())


def test_a_counter_with_hooks_counts_each_layer(model):
    """PyTorch's FlopCounterMode hooks all modules at once, and knows no other ops than PyTorch's."""
    with FlopCounterMode(display=False) as counter:
        model(image())
    counts = counter.get_flop_counts()
    for name, layer in layers_of(model, nn.Linear).items():
        (count,) = counts[f'{type(model).__name__}.{name}'].values()
        assert count
        assert count % (2 * layer.in_features * layer.out_features) == 0


@pytest.mark.parametrize(
    'change',
    [
        lambda layer: layer.register_forward_pre_hook(print),
        lambda layer: layer.register_forward_hook(print),
        lambda layer: layer.register_full_backward_pre_hook(print),
        lambda layer: layer.register_full_backward_hook(print),
        lambda layer: parametrizations.spectral_norm(layer),
        lambda layer: setattr(layer, 'forward', torch.relu),
        lambda layer: setattr(layer, '__class__', type('Linear8bit', (nn.Linear,), {})),
        lambda layer: setattr(layer, 'weight', subclass_parameter(layer.weight)),
    ],
)
def test_what_is_not_plain(change):
    layer = nn.Linear(2, 2)
    assert is_plain(layer, None, nn.Conv2d(1, 1, 1))
    change(layer)
    assert not is_plain(nn.Linear(2, 2), layer)


def subclass_parameter(weight: Tensor) -> nn.Parameter:
    """A parameter as libraries that quantise or distribute weights make it."""

    class Quantized(Tensor):
        pass

    return nn.Parameter(weight.data.as_subclass(Quantized))


def test_a_global_hook_makes_nothing_plain():
    with register_module_forward_hook(lambda *_: None):
        assert not is_plain(nn.Linear(2, 2))
    assert is_plain(nn.Linear(2, 2))


@pytest.mark.parametrize('hooked', [False, True])
def test_compiled_layers_follow_the_rule(hooked, monkeypatch):
    if hooked and torch.__version__ < (2, 6):
        pytest.skip('this torch compiles no hooks')
    monkeypatch.setattr(tiled, 'WORTHWHILE', 0)
    torch._dynamo.reset()  # torch.compile does not notice hooks that are registered later
    layer, graphs, fired = MLP(4, 8), [], []
    if hooked:
        layer.fc1.register_forward_hook(lambda *_: fired.append(True))

    def backend(graph: torch.fx.GraphModule, _) -> Callable:
        graphs.append(graph)
        return graph

    x = torch.randn(3, 4)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend=backend)(x), layer(x))
    assert len(fired) == 2 * hooked
    (graph,) = graphs
    called = {node.target for node in graph.graph.nodes}
    assert (torch.ops.soft_mm.mlp.default in called) != hooked

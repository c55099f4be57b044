"""The reused result of resizing always matches the current weights and size."""

import copy

import pytest
import torch
import torch.nn.functional as F

from soft_mm.models.layers.position_embed import PositionEmbed


@pytest.fixture
def layer() -> PositionEmbed:
    torch.manual_seed(0)
    return PositionEmbed(8, (7, 5))


def added(layer: PositionEmbed, height: int, width: int) -> torch.Tensor:
    return layer(torch.zeros(1, 8, height, width))


def check(layer: PositionEmbed, height: int, width: int) -> None:
    expected = F.interpolate(layer.weight, (height, width), mode='bilinear')
    assert torch.equal(added(layer, height, width), expected)


@torch.no_grad()
def test_resizes_again_for_another_size_or_changed_weights(layer):
    for size in [(9, 5), (9, 5), (20, 30), (9, 5), (7, 5)]:
        check(layer, *size)
    layer.weight.mul_(2)
    check(layer, 7, 5)
    check(layer, 9, 5)
    layer.weight.data.mul_(2)  # does not increase the version counter
    check(layer, 9, 5)
    layer.load_state_dict(dict(weight=torch.ones(1, 8, 7, 5)))
    check(layer, 9, 5)
    check(copy.deepcopy(layer).double().float(), 9, 5)


def test_resizes_once_in_inference_and_with_gradient_in_training(layer, monkeypatch):
    resized = []
    interpolate = F.interpolate
    monkeypatch.setattr(
        F, 'interpolate', lambda *args, **kwargs: resized.append(1) or interpolate(*args, **kwargs)
    )
    with torch.inference_mode():
        for _ in range(3):
            added(layer, 9, 5)
    assert len(resized) == 1
    added(layer, 9, 5).sum().backward()
    assert len(resized) == 2
    assert layer.weight.grad.sum().item() == pytest.approx(8 * 9 * 5)
    assert list(layer.state_dict()) == ['weight']

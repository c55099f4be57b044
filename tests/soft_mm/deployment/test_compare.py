"""Outputs of two runtimes agree in spite of rounding, and of nothing else."""

import pytest
import torch
from torch import Tensor

from soft_mm.deployment.compare import compare

NUMBER = 100


def detections() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    corners, sides = 300 * torch.rand(2, NUMBER, 2, generator=generator)
    return dict(
        boxes=torch.cat((corners, corners + sides), 1),
        scores=torch.rand(NUMBER, generator=generator).sort(descending=True).values,
        labels=torch.arange(NUMBER) % 7,
        masks=torch.randn(NUMBER, 28, 28, generator=generator),
    )


def changed(outputs: dict[str, Tensor], name: str, number: int, by: float) -> dict[str, Tensor]:
    """The outputs with a change of the first ``number`` values along the first dimension of one."""
    value = outputs[name].clone()
    value[:number] += by
    return {**outputs, name: value}


@pytest.mark.parametrize(
    ('name', 'by', 'much'), [('boxes', 0.01, 5), ('scores', 1e-5, 0.1), ('masks', 1e-4, 0.5)]
)
def test_detections(name, by, much):
    ours = detections()
    rounded = changed(ours, name, NUMBER, by)
    assert compare(ours, rounded) == '100 of 100 detections are the same as in PyTorch'
    order = torch.randperm(NUMBER, generator=torch.Generator().manual_seed(1))
    assert compare(ours, {name: out[order] for name, out in rounded.items()}).startswith('100 of')
    assert compare(ours, changed(ours, name, 2, much)).startswith('98 of 100')
    with pytest.raises(ValueError, match='only 95 of 100 detections are the same'):
        compare(ours, changed(ours, name, 5, much))


def test_other_labels_and_numbers_of_detections():
    ours = detections()
    with pytest.raises(ValueError, match='only 90 of 100'):
        compare(ours, changed(ours, 'labels', 10, 1))
    fewer = {name: out[:90] for name, out in ours.items()}
    for pair in (ours, fewer), (fewer, ours):
        with pytest.raises(ValueError, match='only 90 of 100'):
            compare(*pair)
    none = {name: out[:0] for name, out in ours.items()}
    assert compare(none, none).startswith('0 of 0')
    with pytest.raises(ValueError, match='only 0 of 100'):
        compare(none, ours)


def test_classes():
    ours = dict(classes=torch.arange(2000).view(40, 50))
    assert compare(ours, ours).startswith('100.00% of the pixels')
    assert compare(ours, changed(ours, 'classes', 0, 1)).startswith('100.00%')
    with pytest.raises(ValueError, match=r'only 97.5% of the pixels'):
        compare(ours, changed(ours, 'classes', 1, 1))
    with pytest.raises(
        ValueError, match=r'classes has the shape \(39, 50\), in PyTorch \(40, 50\)'
    ):
        compare(ours, dict(classes=ours['classes'][1:]))


@pytest.mark.parametrize('by', [0.01, float('nan')])
def test_values(by):
    ours = dict(stage1=torch.ones(3, 4), stage2=torch.tensor([[-4.0, 2.0]]))
    assert compare(ours, changed(ours, 'stage2', 1, 0.002)).startswith(
        'agrees with PyTorch to 5.0e-04'
    )
    with pytest.raises(
        ValueError, match='stage2 differs from PyTorch by (2.5e-03|nan) of the largest'
    ):
        compare(ours, changed(ours, 'stage2', 1, by))

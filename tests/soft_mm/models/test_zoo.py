"""Backbones by name."""

import re
from pathlib import Path

import pytest
import torch

import soft_mm

CONFIGS = Path(__file__).parents[3] / 'configs/imagenet'


def test_names_are_those_of_the_configs():
    names = {path.stem.partition('_')[0] for path in CONFIGS.glob('*.py')}
    assert set(soft_mm.list_backbones()) == names


def test_patterns():
    assert soft_mm.list_backbones('*deit*') == [
        f'inline-deit-{s}' for s in ('tiny', 'small', 'base')
    ]
    assert soft_mm.list_backbones('soft-tiny') == ['soft-tiny']
    assert soft_mm.list_backbones('resnet*') == []


@pytest.mark.parametrize('name', soft_mm.list_backbones())
def test_every_name_builds_what_it_says(name):
    with torch.device('meta'):
        backbone = soft_mm.build_backbone(name, img_size=64)
    family, _, arch = name.rpartition('-')
    assert type(backbone).__name__.lower() == family.replace('-norm', '').replace('-', '')
    assert getattr(backbone.stages[0].blocks[0].attn, 'sym_norm', False) == ('norm' in family)
    expected = type(backbone).arch_zoo[arch]
    assert backbone.arch == {key: tuple(value) for key, value in expected.items()}


def test_arguments_go_to_the_class():
    backbone = soft_mm.build_backbone('inline-pvt-tiny', out_indices=(1, -1), frozen_stages=1)
    maps = backbone(torch.rand(1, 3, 64, 96))
    assert [m.shape for m in maps] == [(1, 128, 8, 12), (1, 512, 2, 3)]
    assert backbone.out_channels == [128, 512]
    assert backbone.out_strides == [8, 32]
    assert not any(p.requires_grad for p in backbone.stages[0].parameters())
    with pytest.raises(TypeError, match='InLinePVT has no argument windows; it has arch'):
        soft_mm.build_backbone('inline-pvt-tiny', windows=7)


@pytest.mark.parametrize(
    ('name', 'similar'),
    [
        ('soft_norm_tiny', 'soft-norm-tiny'),
        ('inline-pvt', 'inline-pvt-tiny'),
        (None, 'soft|inline'),
    ],
)
def test_an_unknown_name_is_answered_with_similar_ones(name, similar):
    with pytest.raises(
        ValueError, match=f'list_backbones.*({similar}).*got {re.escape(repr(name))}'
    ):
        soft_mm.build_backbone(name)

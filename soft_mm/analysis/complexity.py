"""Parameters and multiply-adds of the model of a config."""

from functools import cache
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from .flops import count_multiply_adds


def build_model(cfg: Config) -> nn.Module:
    """Build the model for inference: in eval mode and without the auxiliary head."""
    MMLogger.get_current_instance().setLevel('WARNING')
    init_default_scope(cfg.default_scope)
    model = revert_sync_batchnorm(MODELS.build(cfg.model)).eval()
    if hasattr(model, 'auxiliary_head'):
        del model.auxiliary_head
    return model


@cache
def measure(config: Path) -> dict[str, float]:
    """Count parameters and, for classifiers, multiply-adds.

    Returns:
        'params' in millions. For classifiers also 'size', the side of the input image in pixels,
        'flops', the multiply-adds in billions, and 'newton', those of Newton's iteration in
        billions, which the papers do not count.
    """
    cfg = Config.fromfile(config)
    with torch.device('meta'):  # initialising the weights would take as long as counting
        model = build_model(cfg)
    if cfg.default_scope != 'mmpretrain':
        return dict(params=_millions(model))
    model.to_empty(device='cpu')
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.detach().zero_()
    size = cfg.model.backbone.get('img_size', 224)
    counts = count_multiply_adds(model, torch.zeros(1, 3, size, size))
    newton = counts.pop('newton_inverse', 0)
    return dict(params=_millions(model), size=size, flops=counts.total() / 1e9, newton=newton / 1e9)


def _millions(model: nn.Module) -> float:
    return sum(p.numel() for p in model.parameters()) / 1e6

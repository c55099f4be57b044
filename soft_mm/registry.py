"""The registry through which every OpenMMLab toolbox builds our models."""

from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import Registry

MODELS = Registry('model', parent=ROOT_MODELS, scope='soft_mm', locations=['soft_mm.models'])

"""Child registries of MMEngine's root registries.

Configs of any OpenMMLab toolbox refer to their modules by scope, such as ``type='soft_mm.SOFT'``.
"""

from mmengine.registry import DATASETS as ROOT_DATASETS
from mmengine.registry import HOOKS as ROOT_HOOKS
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import RUNNERS as ROOT_RUNNERS
from mmengine.registry import STRATEGIES as ROOT_STRATEGIES
from mmengine.registry import Registry

MODELS = Registry('model', parent=ROOT_MODELS, scope='soft_mm', locations=['soft_mm.models'])
DATASETS = Registry(
    'dataset', parent=ROOT_DATASETS, scope='soft_mm', locations=['soft_mm.datasets']
)
HOOKS = Registry('hook', parent=ROOT_HOOKS, scope='soft_mm', locations=['soft_mm.engine.hooks'])
RUNNERS = Registry(
    'runner', parent=ROOT_RUNNERS, scope='soft_mm', locations=['soft_mm.engine.runner']
)
STRATEGIES = Registry(
    'strategy',
    parent=ROOT_STRATEGIES,
    scope='soft_mm',
    locations=['soft_mm.engine.strategies'],
)

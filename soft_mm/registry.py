"""Child registries of MMEngine's root registries.

Configs of any OpenMMLab toolbox refer to their modules by scope, such as ``type='soft_mm.SOFT'``, and
inherit from ours with ``_base_ = 'soft_mm::…'``.
"""

from mmengine import registry as root
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.registry import Registry

# MMEngine resolves 'PACKAGE::…' only for the packages in this table.
MODULE2PACKAGE.setdefault('soft_mm', 'soft_mm')


def _child(parent: Registry, location: str) -> Registry:
    return Registry(parent.name, parent=parent, scope='soft_mm', locations=[location])


MODELS = _child(root.MODELS, 'soft_mm.models')
DATASETS = _child(root.DATASETS, 'soft_mm.datasets')
HOOKS = _child(root.HOOKS, 'soft_mm.engine.hooks')
OPTIM_WRAPPER_CONSTRUCTORS = _child(root.OPTIM_WRAPPER_CONSTRUCTORS, 'soft_mm.engine.optimizers')
RUNNERS = _child(root.RUNNERS, 'soft_mm.engine.runner')
STRATEGIES = _child(root.STRATEGIES, 'soft_mm.engine.strategies')

# These stay empty. In a config that inherits from ours MMEngine looks for its own modules, such as
# AdamW, in scope soft_mm, and logs a warning for each kind of module without a registry there.
for _parent in (root.DATA_SAMPLERS, root.LOOPS, root.OPTIMIZERS, root.PARAM_SCHEDULERS):
    _child(_parent, 'soft_mm.registry')

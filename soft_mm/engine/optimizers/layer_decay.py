"""Lower learning rates for the layers of the backbone that are closer to the image."""

from numbers import Real

from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

from ...registry import OPTIM_WRAPPER_CONSTRUCTORS


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayConstructor(DefaultOptimWrapperConstructor):
    """Multiply the learning rate by ``layer_decay_rate`` for every layer between a parameter and the head.

    The rate of a parameter at depth d of L is ``lr · layer_decay_rate ** (L - 1 - d)``, as in BEiT (arXiv
    2106.08254) and in mmpretrain's LearningRateDecayOptimWrapperConstructor. The model's ``backbone`` gives
    the depths with a method ``get_layer_depth``, as those of soft_mm and some of mmpretrain do. Everything
    outside of the backbone has the full rate.

    ``paramwise_cfg`` takes ``layer_decay_rate``, a number in (0, 1], and all options of MMEngine's
    DefaultOptimWrapperConstructor; an ``lr_mult`` multiplies the decayed rate.

    Raises:
        TypeError: if the model's backbone has no ``get_layer_depth``.
        ValueError: if ``layer_decay_rate`` is missing or invalid.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        self.rate = (paramwise_cfg or {}).get('layer_decay_rate')
        if not (isinstance(self.rate, Real) and 0 < self.rate <= 1):
            raise ValueError(
                f'paramwise_cfg.layer_decay_rate must be a number in (0, 1], got {self.rate!r}'
            )
        super().__init__(optim_wrapper_cfg, paramwise_cfg)

    def add_params(self, params: list[dict], module: nn.Module, prefix: str = '', **kwargs) -> None:
        super().add_params(params, module, prefix, **kwargs)
        if prefix:  # MMEngine's method calls this one for every submodule
            return
        backbone = getattr(module, 'backbone', None)
        if not hasattr(backbone, 'get_layer_depth'):
            raise TypeError(
                'layer_decay_rate needs a model whose backbone has a method get_layer_depth, '
                f'got {type(module).__name__} with {type(backbone).__name__}'
            )
        names = {parameter: name for name, parameter in module.named_parameters()}
        for group in params:
            depth, number = backbone.get_layer_depth(names[group['params'][0]], 'backbone.')
            group['lr'] = group.get('lr', self.base_lr) * self.rate ** (number - 1 - depth)

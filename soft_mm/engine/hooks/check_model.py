from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import BaseLoop, Runner
from torch import nn

from ...registry import HOOKS


@HOOKS.register_module()
class CheckModelHook(Hook):
    """Check before a run that channels match within the model, and classes match the datasets.

    Raises:
        ValueError: for the first invalid ``in_channels``, ``in_index`` or ``num_classes``.
    """

    def before_run(self, runner: Runner) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        _check_channels(model)
        for loop in runner._train_loop, runner._val_loop, runner._test_loop:
            if isinstance(loop, BaseLoop):  # loops that this run does not use remain configs
                _check_classes(model, loop.dataloader.dataset)


def _check_channels(model: nn.Module) -> None:
    """Check the ``in_channels`` of the neck, or of each head if there is no neck."""
    channels = getattr(getattr(model, 'backbone', None), 'out_channels', None)
    if channels is None:  # not a soft_mm backbone
        return
    names = ['neck'] if getattr(model, 'neck', None) else ['head', 'decode_head', 'auxiliary_head']
    for name in names:
        part = getattr(model, name, None)
        if not hasattr(part, 'in_channels'):
            continue
        indices = getattr(part, 'in_index', range(len(channels)) if name == 'neck' else -1)
        try:
            expected = (
                channels[indices] if isinstance(indices, int) else [channels[i] for i in indices]
            )
        except IndexError:
            raise ValueError(
                f'model.{name}.in_index must be below {len(channels)}, the number of '
                f'backbone outputs, got {indices}'
            ) from None
        given = part.in_channels
        if (given if isinstance(given, int) else list(given)) != expected:
            raise ValueError(
                f"model.{name}.in_channels must match the backbone's, {expected}, got {given}"
            )


def _check_classes(model: nn.Module, dataset: object) -> None:
    classes = dataset.metainfo.get('classes')
    for name, module in model.named_modules():
        number = getattr(module, 'num_classes', None)
        # The model itself may have a total over its heads, and an RPN only detects objects.
        if None in (classes, number) or name in ('', 'rpn_head'):
            continue
        if number != len(classes):
            raise ValueError(
                f'model.{name}.num_classes must be {len(classes)}, the number of '
                f'classes of {type(dataset).__name__}, got {number}'
            )

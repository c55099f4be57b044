import re

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import BaseLoop, Runner
from torch import Tensor, nn

from ...registry import HOOKS

NAMED = 6  # parameters that a warning names; it only counts further ones


class GradientWatch:
    """Watch which parameters of a model that require a gradient get one.

    Hooks see a gradient when it arrives: after an iteration, it has already been set to None.

    Attributes:
        missing (dict[str, None]): names of the parameters that have not got a gradient so far.
    """

    def __init__(self, model: nn.Module) -> None:
        parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.missing = dict.fromkeys(parameters)
        self._handles = [
            p.register_post_accumulate_grad_hook(lambda _, name=name: self.missing.pop(name, None))
            for name, p in parameters.items()
        ]

    def stop(self) -> None:
        for handle in self._handles:
            handle.remove()


@HOOKS.register_module()
class CheckModelHook(Hook):
    """Check that channels match within the model, classes match the datasets, and all parameters learn.

    The first two are checked before a run. After the first iteration of training, a warning names the
    parameters that require a gradient but got none. PyTorch's distributed training stops at them in
    the second iteration, unless ``find_unused_parameters`` is set; then there is no warning.

    A checkpoint that training starts from, ``load_from``, may be of this model with another number of
    classes. The hook names the tensors that do not fit: their shapes differ in the first dimension.

    Args:
        allow_other_classes (bool): let these tensors keep their initial values, with a warning, and load
            all others.

    Raises:
        ValueError: for the first invalid ``in_channels``, ``in_index`` or ``num_classes``; for a
            checkpoint of another number of classes, unless ``allow_other_classes`` is True.
    """

    priority = 'HIGH'  # before EMAHook, which also loads the checkpoint

    def __init__(self, allow_other_classes: bool = False) -> None:
        if not isinstance(allow_other_classes, bool):
            raise ValueError(
                f'allow_other_classes must be True or False, got {allow_other_classes!r}'
            )
        self.allow_other_classes = allow_other_classes

    def before_run(self, runner: Runner) -> None:
        model = _unwrap(runner.model)
        _check_channels(model)
        for loop in runner._train_loop, runner._val_loop, runner._test_loop:
            if isinstance(loop, BaseLoop):  # loops that this run does not use remain configs
                _check_classes(model, loop.dataloader.dataset)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if runner._resume or not isinstance(runner._train_loop, BaseLoop):
            return
        state, own = checkpoint.get('state_dict', checkpoint), _unwrap(runner.model).state_dict()
        names = _of_other_classes(state, own)
        if not names:
            return
        shown = _list_some(
            [
                f'{key} {tuple(state[name].shape)} instead of {tuple(own[key].shape)}'
                for name, key in names.items()
            ]
        )
        message = f'load_from={runner._load_from} is of another number of classes: {shown}'
        if not self.allow_other_classes:
            raise ValueError(
                f'{message}. To load everything else and train these from their initial values, set '
                'allow_other_classes=True in CheckModelHook: '
                'default_hooks.check_model.allow_other_classes=True in our configs'
            )
        runner.logger.warning(f'{message}. These keep their initial values')
        state.update({name: own[key] for name, key in names.items()})

    def before_train(self, runner: Runner) -> None:
        allowed = _allows_unused(runner)
        self.watch = None if allowed else GradientWatch(_unwrap(runner.model))

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: object = None, outputs: dict | None = None
    ) -> None:
        if self.watch is None:
            return
        self.watch.stop()
        if names := list(self.watch.missing):
            runner.logger.warning(_describe(names, _unwrap(runner.model)))
        self.watch = None


def _unwrap(model: nn.Module) -> nn.Module:
    return model.module if is_model_wrapper(model) else model


def _allows_unused(runner: Runner) -> bool:
    """Whether distributed training ignores parameters that get no gradient, now or if it were."""
    if is_model_wrapper(runner.model):
        return getattr(runner.model, 'find_unused_parameters', False)
    wrapper = runner.cfg.get('model_wrapper_cfg') or runner.cfg
    return wrapper.get('find_unused_parameters', False)


def _of_other_classes(state: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, str]:
    """Names of a checkpoint's tensors that differ in the number of classes, and their names in the model.

    There are none if anything else outside of the backbone, which resizes some, does not fit: then the
    checkpoint is of another model.
    """
    keys = {name: name.removeprefix('module.') for name in state}
    if own.keys() != {*keys.values()}:
        return {}
    misfits = {
        name: key
        for name, key in keys.items()
        if state[name].shape != own[key].shape and not key.startswith('backbone.')
    }
    fits = (state[name].shape[1:] == own[key].shape[1:] for name, key in misfits.items())
    return misfits if all(fits) else {}


def _list_some(items: list[str]) -> str:
    """Join the first items, and count further ones."""
    shown = ', '.join(items[:NAMED])
    return shown if len(items) <= NAMED else f'{shown} and {len(items) - NAMED} more'


def _describe(names: list[str], model: nn.Module) -> str:
    """Name parameters that got no gradient, and say what to set."""
    shown = _list_some(names)
    maps = {
        int(found[1])
        for name in names
        if (found := re.match(r'backbone\.(?:stages|pyramid)\.(\d+)\.', name))
    }
    indices = getattr(getattr(model, 'backbone', None), 'out_indices', ())
    kept = tuple(i for i in indices if i not in maps)
    value = f'={kept}' if 0 < len(kept) < len(indices) else ''
    return (
        f'in the first iteration, these parameters got no gradient: {shown}. They do not learn, and '
        "distributed training stops with 'Expected to have finished reduction in the prior "
        "iteration'. If they belong to feature maps that nothing uses, do not return those: set "
        f'model.backbone.out_indices{value}, and the in_channels and start_level of the neck '
        'accordingly. Otherwise freeze them, or set find_unused_parameters=True in the config'
    )


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

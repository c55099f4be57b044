"""Detection of NaN and Inf before they reach the weights."""

from math import inf

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from mmengine.utils import apply_to
from torch import nn
from torch.optim import Optimizer

from ...registry import HOOKS


@HOOKS.register_module()
class BadNumbersHook(Hook):
    """Check every loss and gradient, and report the layer in which NaN or Inf appears first.

    Gradients that overflow because of float16 loss scaling are left to PyTorch's GradScaler, which
    skips the step and lowers the scale.

    Args:
        on_bad_numbers (str): ``'stop'`` ends the run; ``'skip'`` skips the update, while schedules
            still advance.

    Raises:
        FloatingPointError: at the first NaN or Inf, with ``'stop'``.
    """

    priority = 'VERY_HIGH'  # restore buffers before other hooks average or save them

    def __init__(self, on_bad_numbers: str = 'stop') -> None:
        if on_bad_numbers not in ('stop', 'skip'):
            raise ValueError(f"on_bad_numbers must be 'stop' or 'skip', got {on_bad_numbers!r}")
        self.skip = on_bad_numbers == 'skip'

    def before_train(self, runner: Runner) -> None:
        self.runner = runner
        self.model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self.sharded = any(hasattr(p, 'to_local') for p in self.model.parameters())
        self.diagnosing = False
        self.model.register_forward_pre_hook(self._store_inputs, with_kwargs=True)
        runner.optim_wrapper.optimizer.register_step_pre_hook(self._check_gradients)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: object = None, outputs: dict | None = None
    ) -> None:
        if not self.bad_iteration and not outputs['loss'].isfinite():
            self._stop_or_skip()
        if self.bad_iteration:
            for buffer, before in zip(self.model.buffers(), self.buffers):
                buffer.copy_(before)

    def _store_inputs(self, model: nn.Module, args: tuple, kwargs: dict) -> None:
        if model.training and not self.diagnosing:
            self.bad_iteration = False
            self.inputs = args, kwargs
            if self.skip:  # the forward pass updates the running statistics of norm layers
                self.buffers = [buffer.clone() for buffer in model.buffers()]

    def _check_gradients(self, optimizer: Optimizer, *_) -> None:
        gradients = [
            p.grad
            for group in optimizer.param_groups
            for p in group['params']
            if p.grad is not None
        ]
        if self.sharded:
            shards = (gradient.to_local() for gradient in gradients)
            gradients = [shard for shard in shards if shard.numel()]
        finite = torch.stack(torch._foreach_norm(gradients, inf)).isfinite().all()
        if self.sharded:
            finite = finite.float()
            all_reduce(finite, 'min')
        if not finite:
            self._stop_or_skip()
            optimizer.zero_grad()  # the optimizer ignores parameters without gradients

    def _stop_or_skip(self) -> None:
        message = f'iteration {self.runner.iter + 1}: {self._find_first_bad_tensor()} is not finite'
        if not self.skip:
            raise FloatingPointError(
                f'{message}. To skip such iterations, set on_bad_numbers of BadNumbersHook to '
                "'skip'"
            )
        self.runner.logger.warning(f'{message}: skipped')
        self.bad_iteration = True

    def _find_first_bad_tensor(self) -> str:
        """Repeat the iteration and describe the first bad module output or gradient."""
        bad = []

        def check(name: str, output: object) -> None:
            apply_to(output, torch.is_tensor, lambda x: x.isfinite().all() or bad.append(name))

        hooks = [
            module.register_forward_hook(
                lambda module, args, output, name=name: check(f'the output of {name}', output)
            )
            for name, module in self.model.named_modules()
        ]
        args, kwargs = self.inputs
        with self.runner.optim_wrapper.optim_context(self.model):
            self.diagnosing = True
            losses = self.model(*args, **kwargs)
            self.diagnosing = False
        for hook in hooks:
            hook.remove()
        check('the loss', losses)
        # A sharded backward pass needs all ranks, but ranks with a bad output would not join it.
        if not bad and not self.sharded:
            loss, _ = self.model.parse_losses(losses)
            parameters = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
            gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            # The backward pass reaches the last parameters first.
            for name, gradient in reversed(list(zip(parameters, gradients))):
                check(f'the gradient of {name}', gradient)
        return (*bad, 'a value on another rank or of a random operation')[0]

"""NaN and Inf, caught before they reach the weights."""

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
    """Looks at the loss and the gradient of every iteration, and names the layer that is to blame.

    A gradient that overflows under float16's loss scale is none of its business: that step is
    skipped, and the scale lowered, by PyTorch's GradScaler.

    Args:
        on_bad_numbers (str): ``'stop'`` ends the run, ``'skip'`` goes on as if the iteration had
            not been, but for its place in the schedule.
    """

    priority = 'VERY_HIGH'  # what is restored here, others average and save

    def __init__(self, on_bad_numbers: str = 'stop') -> None:
        if on_bad_numbers not in ('stop', 'skip'):
            raise ValueError(f"on_bad_numbers must be 'stop' or 'skip', not {on_bad_numbers!r}")
        self.skip = on_bad_numbers == 'skip'

    def before_train(self, runner: Runner) -> None:
        self.runner = runner
        self.model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self.sharded = any(hasattr(p, 'to_local') for p in self.model.parameters())
        self.looking = False
        self.model.register_forward_pre_hook(self._remember, with_kwargs=True)
        runner.optim_wrapper.optimizer.register_step_pre_hook(self._check_gradient)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: object = None, outputs: dict | None = None
    ) -> None:
        if not self.caught and not outputs['loss'].isfinite():
            self._catch()
        if self.caught:
            for buffer, before in zip(self.model.buffers(), self.buffers):
                buffer.copy_(before)

    def _remember(self, model: nn.Module, args: tuple, kwargs: dict) -> None:
        if model.training and not self.looking:
            self.caught = False
            self.inputs = args, kwargs
            if self.skip:  # the running statistics of norms
                self.buffers = [buffer.clone() for buffer in model.buffers()]

    def _check_gradient(self, optimizer: Optimizer, *_) -> None:
        gradient = [
            p.grad
            for group in optimizer.param_groups
            for p in group['params']
            if p.grad is not None
        ]
        if self.sharded:
            parts = (part.to_local() for part in gradient)
            gradient = [part for part in parts if part.numel()]
        finite = torch.stack(torch._foreach_norm(gradient, inf)).isfinite().all()
        if self.sharded:
            finite = finite.float()
            all_reduce(finite, 'min')
        if not finite:
            self._catch()
            optimizer.zero_grad()  # a parameter without a gradient stays as it is

    def _catch(self) -> None:
        message = f'iteration {self.runner.iter + 1}: {self._culprit()} is not finite'
        if not self.skip:
            raise FloatingPointError(
                f'{message}. To skip such iterations, set on_bad_numbers of BadNumbersHook to '
                "'skip'"
            )
        self.runner.logger.warning(f'{message}: skipped')
        self.caught = True

    def _culprit(self) -> str:
        """The first bad output of a module, or the first bad gradient, as computed anew."""
        bad = []

        def look(name: str, output: object) -> None:
            apply_to(output, torch.is_tensor, lambda x: x.isfinite().all() or bad.append(name))

        hooks = [
            module.register_forward_hook(
                lambda module, args, output, name=name: look(f'the output of {name}', output)
            )
            for name, module in self.model.named_modules()
        ]
        args, kwargs = self.inputs
        with self.runner.optim_wrapper.optim_context(self.model):
            self.looking = True
            losses = self.model(*args, **kwargs)
            self.looking = False
        for hook in hooks:
            hook.remove()
        look('the loss', losses)
        # The backward pass of shards takes every process, and here each looks for itself.
        if not bad and not self.sharded:
            loss, _ = self.model.parse_losses(losses)
            parameters = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
            gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            # Backward, the last parameter comes first.
            for name, gradient in reversed(list(zip(parameters, gradients))):
                look(f'the gradient of {name}', gradient)
        return (*bad, 'a number of another process or of a random choice')[0]

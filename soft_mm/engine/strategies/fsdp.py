"""Fully sharded training: each rank keeps a shard of every parameter, gradient and optimizer state.

ZeRO stage 3 (arXiv 1910.02054), as implemented by PyTorch's ``fully_shard``. MMEngine's own
FSDPStrategy flattens parameters, which hides the shapes that decide on weight decay, and clips each
rank's shard of the gradient by the norm of that shard alone.
"""

import time
from collections.abc import Callable
from math import isinf

import mmengine
import torch
from mmengine._strategy import DDPStrategy
from mmengine.device import get_device
from mmengine.dist import get_world_size, is_distributed, is_main_process
from mmengine.hooks import EMAHook, Hook
from mmengine.optim import BaseOptimWrapper
from mmengine.runner import save_checkpoint
from mmengine.utils import apply_to
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ...fileio.atomic import ATOMIC
from ...fileio.checkpoints import checkpoint_of_this_model
from ...models.backbones.base import Stage
from ...registry import STRATEGIES
from ..runner import check_resumable


@STRATEGIES.register_module()
class FSDPStrategy(DDPStrategy):
    """Fully sharded data parallelism for MMEngine's FlexibleRunner.

    Each block of a backbone is one FSDP unit, gathered only while it runs; the rest of the model is
    another. Checkpoints contain full tensors, like those of any other run, so that sharded and
    unsharded runs can resume from each other, with any world size. Without a launcher, a model can
    be tested, on one device without shards, but not trained.

    Args:
        **kwargs: arguments of MMEngine's DDPStrategy.

    Raises:
        RuntimeError: if training starts without a process group.
        ValueError: if gradients are to be clipped by their largest value, with ``norm_type='inf'``.
    """

    def _setup_distributed(self, launcher: str = 'none', **kwargs) -> None:
        if launcher != 'none':
            super()._setup_distributed(launcher, **kwargs)

    def prepare(self, model: nn.Module | dict, **kwargs) -> object:
        if kwargs.get('optim_wrapper') is not None and not is_distributed():
            raise RuntimeError(
                'FSDPStrategy trains only in a distributed run, which may have a single process: '
                'start it with tools/dist_train.sh'
            )
        return super().prepare(model, **kwargs)

    def check_hooks(self, hooks: list[Hook]) -> None:
        """Check that a run does not average weights, which takes a copy of the model without shards.

        Raises:
            ValueError: if one of the hooks is MMEngine's EMAHook or a subclass of it.
        """
        for hook in hooks:
            if isinstance(hook, EMAHook):
                raise ValueError(
                    f'custom_hooks must not have {type(hook).__name__} in a run with FSDPStrategy, '
                    'which does not average weights: remove it from custom_hooks, or remove strategy '
                    'and runner_type from the config to train without shards'
                )

    def build_optim_wrapper(self, *args, **kwargs) -> BaseOptimWrapper:
        optim_wrapper = super().build_optim_wrapper(*args, **kwargs)
        clip_grad = getattr(optim_wrapper, 'clip_grad_kwargs', None) or {}
        # A parameter with fewer rows than there are processes leaves some of them an empty shard, of
        # which PyTorch computes any norm but this one.
        if isinf(float(clip_grad.get('norm_type', 2))):
            raise ValueError(
                'optim_wrapper.clip_grad.norm_type must be finite with FSDPStrategy, got '
                f'{clip_grad["norm_type"]!r}'
            )
        return optim_wrapper

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        model = model.to(get_device())
        if not is_distributed():
            return model  # testing on one device needs no shards
        model = self.convert_model(model)
        mesh = init_device_mesh(get_device(), (get_world_size(),))
        for stage in model.modules():
            if isinstance(stage, Stage):
                for block in stage.blocks:
                    fully_shard(block, mesh=mesh)
        return fully_shard(model, mesh=mesh)

    def save_checkpoint(
        self,
        filename: str,
        *,
        save_optimizer: bool = True,
        save_param_scheduler: bool = True,
        extra_ckpt: dict | None = None,
        callback: Callable[[dict], None] | None = None,
    ) -> None:
        # Gathering full tensors takes every rank; only the main process writes them.
        checkpoint = dict(extra_ckpt or {}, state_dict=_gather(self.model.state_dict()))
        checkpoint['meta'] = dict(
            checkpoint.get('meta', {}),
            seed=self.seed,
            mmengine=mmengine.__version__,
            time=time.strftime('%Y%m%d_%H%M%S'),
        )
        if save_optimizer:
            checkpoint['optimizer'] = _gather(self.optim_state_dict())
        if save_param_scheduler and hasattr(self, 'param_schedulers'):
            checkpoint['param_schedulers'] = self.scheduler_state_dict()
        if callback is not None:
            callback(checkpoint)
        if is_main_process():
            save_checkpoint(checkpoint, filename, backend_args=ATOMIC)

    def load_checkpoint(
        self, filename: str, *, callback: Callable[[dict], None] | None = None, **kwargs
    ) -> dict:

        def completed(checkpoint: dict) -> None:
            if 'state_dict' not in checkpoint:  # MMEngine's Runner reads a bare state dict, too
                state_dict = dict(checkpoint)
                checkpoint.clear()
                checkpoint['state_dict'] = state_dict
            if callback is not None:
                callback(checkpoint)

        with checkpoint_of_this_model(filename):
            return super().load_checkpoint(
                filename, callback=completed, **{**kwargs, 'strict': True}
            )

    def resume(
        self, filename: str, *, callback: Callable[[dict], None] | None = None, **kwargs
    ) -> dict:

        def checked(checkpoint: dict) -> None:
            check_resumable(checkpoint, filename)
            if 'ema_state_dict' in checkpoint:
                raise ValueError(
                    f'{filename} contains averaged weights (ema_state_dict), which FSDPStrategy does '
                    'not average further: resume from it without shards, or start a new run from its '
                    'averaged weights with load_from'
                )
            if callback is not None:
                callback(checkpoint)

        return super().resume(filename, callback=checked, **kwargs)

    def load_model_state_dict(self, state_dict: dict[str, Tensor], **kwargs) -> None:
        own = self.model.state_dict()
        super().load_model_state_dict(
            {name: _shard(tensor, own.get(name)) for name, tensor in state_dict.items()}, **kwargs
        )

    def load_optim_state_dict(self, state_dict: dict) -> None:
        groups = self.optim_wrapper.optimizer.param_groups
        parameters = [parameter for group in groups for parameter in group['params']]
        state_dict['state'] = {
            i: apply_to(state, torch.is_tensor, lambda x, i=i: _shard(x, parameters[i]))
            for i, state in state_dict['state'].items()
        }
        super().load_optim_state_dict(state_dict)


def _gather(state: dict) -> dict:
    """Gather full tensors and move them to the CPU."""
    # In this order: the process group of a GPU run only communicates between GPUs.
    return apply_to(
        state, torch.is_tensor, lambda x: (x.full_tensor() if isinstance(x, DTensor) else x).cpu()
    )


def _shard(x: Tensor, like: Tensor | None) -> Tensor:
    """Shard a full tensor as ``like`` is sharded; tensors of another shape stay full."""
    if isinstance(like, DTensor) and x.shape == like.shape:
        return distribute_tensor(x, like.device_mesh, like.placements)
    return x

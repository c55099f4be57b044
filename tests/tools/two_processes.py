"""Hooks and a CPU implementation of SyncBatchNorm, imported by the configs of test_processes.py.

PyTorch implements SyncBatchNorm for GPUs only, and its wrapper refuses a CPU. The hooks let every
rank leave its weights and losses behind, where a run writes only those of rank 0.
"""

import torch
from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.nn.functional import all_reduce
from torch.distributed.tensor import DTensor


def forward(self: nn.SyncBatchNorm, x: Tensor) -> Tensor:
    if not self.training:
        return nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )
    sums = torch.stack(
        (
            x.sum((0, 2, 3)),
            x.square().sum((0, 2, 3)),
            torch.full_like(self.weight, x.numel() / x.shape[1]),
        )
    )
    total, squares, count = all_reduce(sums)
    mean, variance = total / count, squares / count - (total / count).square()
    with torch.no_grad():
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * count / (count - 1), self.momentum)
    shape = 1, -1, 1, 1
    scale = self.weight * (variance + self.eps).rsqrt()
    return (x - mean.view(shape)) * scale.view(shape) + self.bias.view(shape)


nn.SyncBatchNorm.forward = forward
nn.parallel.DistributedDataParallel._passing_sync_batchnorm_handle = lambda self, module: None


@HOOKS.register_module()
class SaveEveryRank(Hook):
    """Write ``rank0.pth``, ``rank1.pth``, … into the work dir: full weights, losses, FSDP units."""

    def before_train(self, runner) -> None:
        self.losses = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self.losses.append(outputs['loss'].item())

    def after_train(self, runner) -> None:
        model = getattr(runner.model, 'module', runner.model)
        weights = {
            name: x.full_tensor() if isinstance(x, DTensor) else x
            for name, x in model.state_dict().items()
        }
        units = sum(isinstance(module, FSDPModule) for module in runner.model.modules())
        torch.save(
            dict(weights=weights, losses=self.losses, units=units),
            f'{runner.work_dir}/rank{get_rank()}.pth',
        )
        if distributed.is_initialized():
            distributed.barrier()


@HOOKS.register_module()
class SpoilLastRank(Hook):
    """In the third iteration a layer of the last process gives NaN."""

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        if get_rank() == get_world_size() - 1 and runner.iter == 2:
            layer = runner.model.get_submodule('backbone.stages.1.blocks.0.mlp')
            self.spoilt = layer.register_forward_hook(lambda layer, args, out: out * float('nan'))

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if hasattr(self, 'spoilt'):
            self.spoilt.remove()

"""Run by torchrun in two processes: ``ddp_gradients.py DEVICE`` fails if DDP's gradients are wrong.

Each process has half of a batch. The averages of their gradients are those of the whole batch.
"""

import copy
import sys

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from soft_mm import SOFT, InLinePVT


def backward(model: nn.Module, images: torch.Tensor) -> None:
    sum(m.square().mean() for m in model(images)).backward()


def main(device: str) -> None:
    distributed.init_process_group('gloo')  # NCCL refuses two processes on one GPU
    rank = distributed.get_rank()
    for backbone, options in ((SOFT, dict(sym_norm=True)), (InLinePVT, {})):
        torch.manual_seed(0)
        model = backbone(arch='tiny', img_size=64, **options).to(device).eval()
        images = torch.randn(2, 3, 64, 64).to(device)
        parallel = DistributedDataParallel(copy.deepcopy(model))
        backward(parallel, images[rank : rank + 1])
        backward(model, images)
        expected = [p.grad for p in model.parameters()]
        largest = max(grad.abs().max() for grad in expected)
        for got, exact in zip(parallel.parameters(), expected, strict=True):
            # fp32 sums over a batch in another order.
            assert (got.grad - exact).abs().max() <= 1e-4 * largest
    print(f'rank {rank} agrees', flush=True)


if __name__ == '__main__':
    main(sys.argv[1])

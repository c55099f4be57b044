"""Set-up and tear-down of the process group of distributed runs."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.config import Config
from torch import distributed


@contextmanager
def process_group(cfg: Config) -> Iterator[None]:
    """Context in which to build and run a runner of ``cfg``; destroys its process group at the end.

    On a machine without a GPU, which MMEngine's launcher requires, it also initialises torchrun's
    process group, with gloo, and sets ``cfg.model_wrapper_cfg``.
    """
    if cfg.launcher == 'pytorch' and not torch.cuda.is_available():
        distributed.init_process_group('gloo')
        cfg.model_wrapper_cfg = dict(
            type='mmengine.MMDistributedDataParallel',
            device_ids=None,
            broadcast_buffers=False,
            find_unused_parameters=cfg.get('find_unused_parameters', False),
        )
    yield
    if distributed.is_initialized():
        # A gloo thread that frees a tensor while Python exits aborts the process. Gloo's threads
        # stop when the process group is destroyed, which requires releasing every model wrapper
        # that references it.
        gc.collect()
        distributed.destroy_process_group()

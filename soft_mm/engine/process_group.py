import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.config import Config
from torch import distributed


@contextmanager
def process_group(cfg: Config) -> Iterator[None]:
    """Where a runner of ``cfg`` may live: leaves the process group of a distributed run at the end.

    On a machine without GPU, where MMEngine would ask for one, torchrun's processes are also joined
    here, over gloo, and the model wrapper of ``cfg`` is set.
    """
    if cfg.launcher == 'pytorch' and not torch.cuda.is_available():
        distributed.init_process_group('gloo')
        cfg.model_wrapper_cfg = dict(
            type='mmengine.MMDistributedDataParallel', device_ids=None, broadcast_buffers=False
        )
    yield
    if distributed.is_initialized():
        # A thread of gloo that still frees a tensor while Python exits aborts the process. Its
        # threads end with the group, and that with the last model wrapper that knows it.
        gc.collect()
        distributed.destroy_process_group()

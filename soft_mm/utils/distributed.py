import torch
from mmengine.config import Config


def join_cpu_processes(cfg: Config) -> None:
    """Let torchrun's processes train on a machine without GPU, where MMEngine would ask for one.

    Does nothing unless ``cfg.launcher`` is 'pytorch' and there is no GPU; then joins the process
    group over gloo and sets the model wrapper of ``cfg``.
    """
    if cfg.launcher == 'pytorch' and not torch.cuda.is_available():
        torch.distributed.init_process_group('gloo')
        cfg.model_wrapper_cfg = dict(
            type='mmengine.MMDistributedDataParallel', device_ids=None, broadcast_buffers=False)

"""Runner that loads only checkpoints that match the model exactly."""

from mmengine.config import Config
from mmengine.runner import FlexibleRunner
from mmengine.runner import Runner as _Runner

from ..fileio.checkpoints import checkpoint_of_this_model
from ..registry import RUNNERS


def check_resumable(checkpoint: dict, filename: str) -> None:
    """Check that training can resume from a checkpoint.

    Raises:
        ValueError: if the checkpoint has no optimizer state.
    """
    if 'optimizer' not in checkpoint:
        raise ValueError(
            f'{filename} contains only weights and no optimizer state: '
            'training cannot resume from it'
        )


@RUNNERS.register_module()
class Runner(_Runner):
    """MMEngine's Runner with strict checkpoint loading."""

    def load_checkpoint(self, filename: str, map_location: str = 'cpu', **kwargs) -> dict:
        with checkpoint_of_this_model(filename):
            checkpoint = super().load_checkpoint(filename, map_location, strict=True, **kwargs)
        if self._resume:
            check_resumable(checkpoint, filename)
        return checkpoint


def build_runner(cfg: Config) -> _Runner | FlexibleRunner:
    """Build the runner that ``cfg.runner_type`` names, by default :class:`Runner`.

    ``cfg.sync_bn`` applies to every runner: FlexibleRunner reads it from its strategy only.

    Raises:
        ValueError: if the strategy does not support one of the hooks.
    """
    cfg.setdefault('runner_type', 'soft_mm.Runner')
    if cfg.get('sync_bn') and cfg.get('strategy'):
        cfg.strategy.setdefault('sync_bn', cfg.sync_bn)
    runner = RUNNERS.build(cfg)
    strategy = getattr(runner, 'strategy', None)
    if hasattr(strategy, 'check_hooks'):
        strategy.check_hooks(runner.hooks)
    return runner

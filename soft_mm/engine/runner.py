"""Runner that loads only checkpoints that match the model exactly."""

from collections.abc import Iterator
from contextlib import contextmanager

from mmengine.config import Config
from mmengine.runner import FlexibleRunner
from mmengine.runner import Runner as _Runner

from ..registry import RUNNERS


@contextmanager
def checkpoint_of_this_model(filename: str) -> Iterator[None]:
    """Turn the RuntimeError of a strict load in the context into an error that names the file.

    Raises:
        ValueError: names the file and the parameters that are missing, unexpected or misshapen.
    """
    try:
        yield
    except RuntimeError as error:
        # One line for missing keys, one for unexpected keys and one per wrong shape.
        lines = [
            line if len(line) <= 500 else f'{line[:500]}…'
            for line in str(error).splitlines()
            if line
        ]
        more = [f'and {len(lines) - 20} more'] if len(lines) > 20 else []
        raise ValueError(
            '\n  '.join([f'{filename} is not a checkpoint of this model:', *lines[:20], *more])
        ) from None


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
    """
    cfg.setdefault('runner_type', 'soft_mm.Runner')
    if cfg.get('sync_bn') and cfg.get('strategy'):
        cfg.strategy.setdefault('sync_bn', cfg.sync_bn)
    return RUNNERS.build(cfg)

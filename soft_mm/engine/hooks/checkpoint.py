from mmengine.hooks import CheckpointHook as _CheckpointHook
from mmengine.runner import Runner

from ...fileio.atomic import ATOMIC, AtomicBackend
from ...registry import HOOKS


@HOOKS.register_module()
class CheckpointHook(_CheckpointHook):
    """MMEngine's CheckpointHook with atomic writes, removing old checkpoints after the new one.

    MMEngine removes the old checkpoint first: if the disk is full or the process is killed before
    the new one is complete, neither is left.

    Args:
        **kwargs: arguments of MMEngine's CheckpointHook. With ``backend_args`` for storage other
            than local files, that backend decides how files are written and removed.
    """

    def __init__(self, **kwargs) -> None:
        super().__init__(**{**kwargs, 'backend_args': kwargs.get('backend_args') or ATOMIC})

    def before_train(self, runner: Runner) -> None:
        super().before_train(runner)
        if self.backend_args == ATOMIC:
            self.file_backend = _DeferredRemovalBackend()

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        super()._save_checkpoint_with_step(runner, step, meta)
        if isinstance(self.file_backend, _DeferredRemovalBackend):
            self.file_backend.remove_pending()


class _DeferredRemovalBackend(AtomicBackend):
    def __init__(self) -> None:
        self.pending = []

    def remove(self, filepath: str) -> None:
        self.pending.append(filepath)

    def remove_pending(self) -> None:
        while self.pending:
            super().remove(self.pending.pop())

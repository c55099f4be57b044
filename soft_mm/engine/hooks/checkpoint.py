from mmengine.hooks import CheckpointHook as _CheckpointHook
from mmengine.runner import Runner

from ...fileio.atomic import ATOMIC, AtomicBackend
from ...registry import HOOKS


@HOOKS.register_module()
class CheckpointHook(_CheckpointHook):
    """MMEngine's hook, writing atomically and removing old checkpoints only after the new one.

    MMEngine removes the old checkpoint first: if the disk is full or the process is killed before
    the new one is written, neither is left.

    Args:
        **kwargs: those of MMEngine's CheckpointHook. With ``backend_args`` for storage other than
            local files, that storage decides how it writes and removes.
    """

    def __init__(self, **kwargs) -> None:
        super().__init__(**{**kwargs, 'backend_args': kwargs.get('backend_args') or ATOMIC})

    def before_train(self, runner: Runner) -> None:
        super().before_train(runner)
        if self.backend_args == ATOMIC:
            self.file_backend = _RemovesLater()

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        super()._save_checkpoint_with_step(runner, step, meta)
        if isinstance(self.file_backend, _RemovesLater):
            self.file_backend.remove_now()


class _RemovesLater(AtomicBackend):
    def __init__(self) -> None:
        self.outdated = []

    def remove(self, filepath: str) -> None:
        self.outdated.append(filepath)

    def remove_now(self) -> None:
        while self.outdated:
            super().remove(self.outdated.pop())

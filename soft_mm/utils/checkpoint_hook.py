from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook as _CheckpointHook
from mmengine.runner import Runner

from ..registry import HOOKS


@HOOKS.register_module()
class CheckpointHook(_CheckpointHook):
    """MMEngine's, which here removes what is outdated only once what takes its place is written.

    Its own makes room first: if the disk is full or the process killed, neither is left.
    """

    def before_train(self, runner: Runner) -> None:
        super().before_train(runner)
        self.file_backend = _RemovesLater()

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        super()._save_checkpoint_with_step(runner, step, meta)
        self.file_backend.remove_now()


class _RemovesLater(LocalBackend):
    def __init__(self) -> None:
        self.outdated = []

    def remove(self, filepath: str) -> None:
        self.outdated.append(filepath)

    def remove_now(self) -> None:
        while self.outdated:
            super().remove(self.outdated.pop())

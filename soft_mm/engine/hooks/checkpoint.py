from pathlib import Path

from mmengine.hooks import CheckpointHook as _CheckpointHook
from mmengine.logging import MessageHub
from mmengine.runner import Runner

from ...fileio.atomic import ATOMIC, AtomicBackend
from ...registry import HOOKS

REPLACED = 'replaced_checkpoints'  # in the message hub: names of the files to be removed


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
            self.file_backend = _DeferredRemovalBackend(runner.message_hub)
            # The process that wrote the checkpoint to resume from may have died before it removed these.
            for name in runner.message_hub.runtime_info.get(REPLACED, ()):
                (Path(self.out_dir) / name).unlink(missing_ok=True)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        super()._save_checkpoint_with_step(runner, step, meta)
        if isinstance(self.file_backend, _DeferredRemovalBackend):
            self.file_backend.remove_pending()


class _DeferredRemovalBackend(AtomicBackend):
    def __init__(self, message_hub: MessageHub) -> None:
        self.message_hub = message_hub
        self.pending = []

    def remove(self, filepath: str) -> None:
        self.pending.append(filepath)
        self.message_hub.update_info(REPLACED, [Path(path).name for path in self.pending])

    def remove_pending(self) -> None:
        while self.pending:
            super().remove(self.pending.pop())

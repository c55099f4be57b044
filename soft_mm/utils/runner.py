from collections.abc import Iterator
from contextlib import contextmanager

from mmengine.runner import Runner as _Runner


@contextmanager
def checkpoint_of_this_model(filename: str) -> Iterator[None]:
    """Where it is loaded strictly.

    Raises:
        ValueError: naming the file and what does not fit, where PyTorch raises a RuntimeError.
    """
    try:
        yield
    except RuntimeError as error:
        # One line for what is missing, one for what is unexpected, one a wrong shape.
        lines = [
            line if len(line) <= 500 else f'{line[:500]}…'
            for line in str(error).splitlines()
            if line
        ]
        more = [f'and {len(lines) - 20} more'] if len(lines) > 20 else []
        raise ValueError(
            '\n  '.join([f'{filename} is no checkpoint of this model:', *lines[:20], *more])
        ) from None


def check_resumable(checkpoint: dict, filename: str) -> None:
    """
    Raises:
        ValueError: if training cannot go on from it.
    """
    if 'optimizer' not in checkpoint:
        raise ValueError(
            f'{filename} holds weights alone, without the state of the optimizer: '
            'no training can be resumed from it'
        )


class Runner(_Runner):
    """MMEngine's, which here takes no checkpoint but one of its own model."""

    def load_checkpoint(self, filename: str, map_location: str = 'cpu', **kwargs) -> dict:
        with checkpoint_of_this_model(filename):
            checkpoint = super().load_checkpoint(filename, map_location, strict=True, **kwargs)
        if self._resume:
            check_resumable(checkpoint, filename)
        return checkpoint

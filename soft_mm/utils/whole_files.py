"""Files that are whole or not there, whenever the process is killed or the disk is full."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmengine.dist import get_rank
from mmengine.fileio import LocalBackend, register_backend


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary name to write to: it becomes ``path`` once all that was written is on the disk.

    The name is the same every time, so that what a killed run left of it is written over, but each
    process of a run has its own: some files of MMEngine are written by all of them.
    """
    temporary = path.with_name(f'.{path.name}.{get_rank()}.part')
    try:
        yield temporary
        with temporary.open('rb') as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise OSError(error.errno, f'{error.strerror}; nothing is written to', str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


@register_backend('local', prefixes='', force=True)
class WholeFileBackend(LocalBackend):
    """What MMEngine writes checkpoints, metrics and predictions with: its own writes in place."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        with whole_file(Path(filepath)) as temporary:
            super().put(obj, temporary)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = 'utf-8') -> None:
        with whole_file(Path(filepath)) as temporary:
            super().put_text(obj, temporary, encoding)

"""Atomic writes: a file is complete or absent, even if the process is killed or the disk is full."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmengine.dist import get_rank
from mmengine.fileio import LocalBackend, register_backend

# For the ``backend_args`` of MMEngine's functions that write a file.
ATOMIC = dict(backend='soft_mm.atomic')


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary name to write to; it becomes ``path`` once its content is on the disk.

    The temporary name is always the same, so that the next run overwrites what a killed run left.
    Each process of a distributed run has its own, because MMEngine writes some files on all ranks.

    Raises:
        OSError: naming ``path``, which is then unchanged.
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


@register_backend(ATOMIC['backend'])
class AtomicBackend(LocalBackend):
    """MMEngine's backend for local files, writing atomically instead of in place."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        with atomic_write(Path(filepath)) as temporary:
            super().put(obj, temporary)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = 'utf-8') -> None:
        with atomic_write(Path(filepath)) as temporary:
            super().put_text(obj, temporary, encoding)

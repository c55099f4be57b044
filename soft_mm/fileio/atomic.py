"""Atomic writes: a file is complete or unchanged, even if the process dies or the disk is full."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmengine.dist import get_rank
from mmengine.fileio import LocalBackend, register_backend

# ``backend_args`` for MMEngine's functions that write files.
ATOMIC = dict(backend='soft_mm.atomic')


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary file to write to, which is renamed to ``path`` once it is on disk.

    The temporary name is fixed, so that the next run overwrites what a killed run left behind. It
    differs between ranks, because MMEngine writes some files on all ranks.

    Raises:
        OSError: if writing fails; names ``path``, which is unchanged.
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
    """MMEngine's backend for local files with atomic writes."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        with atomic_write(Path(filepath)) as temporary:
            super().put(obj, temporary)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = 'utf-8') -> None:
        with atomic_write(Path(filepath)) as temporary:
            super().put_text(obj, temporary, encoding)

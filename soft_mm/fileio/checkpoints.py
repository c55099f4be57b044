"""Reading checkpoints: tensors and what MMEngine keeps beside them, but no code."""

import os
import re
import zipfile
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader


def _statistic(owner: object, name: str) -> object:
    """All that a log's history, as MMEngine pickles it, needs of ``getattr``."""
    if owner is not HistoryBuffer or name not in ('min', 'max', 'current', 'mean'):
        raise UnpicklingError('GLOBAL builtins.getattr of anything but a statistic')
    return getattr(owner, name)


# The logs of a run and the facts of its dataset.
_HARMLESS = [
    HistoryBuffer,
    (_statistic, 'builtins.getattr'),
    np.ndarray,
    np.dtype,
    *(type(np.dtype(kind)) for kind in ('bool', 'uint8', 'int64', 'float32', 'float64')),
    # Pickled under the one name by NumPy 1 and the other by NumPy 2.
    *(
        (function, f'numpy.{core}.multiarray.{function.__name__}')
        for core in ('core', '_core')
        for function in (np.ndarray.__reduce__(np.empty(0))[0], np.float64().__reduce__()[0])
    ),
]
# Before 2.6 PyTorch lets none of them pass under another's name: tensors alone are safe there.
_CAN_ALLOW = torch.__version__ >= (2, 6)


def load_checkpoint(
    path: Path,
    map_location: str | torch.device | None = 'cpu',
    trust_pickle: bool = False,
    harmless: Iterable = (),
) -> object:
    """What a file holds, if that is tensors, MMEngine's records and ``harmless`` types alone.

    Raises:
        ValueError: if it is no checkpoint, not a whole one, or could run code, which
            ``trust_pickle`` allows.
    """
    try:
        with (
            torch.serialization.safe_globals([*_HARMLESS, *harmless])
            if _CAN_ALLOW
            else nullcontext()
        ):
            return torch.load(path, map_location=map_location, weights_only=not trust_pickle)
    except OSError:
        raise
    except Exception as error:  # a file that is no checkpoint fails in any way there is
        unsafe = re.search(r'GLOBAL ([\w.]+)', str(error))
        if unsafe:
            raise ValueError(
                f'holds {unsafe[1]} beside its tensors, and loading that could run '
                'code; pass --trust-pickle if you trust the file'
            ) from None
        raise ValueError('is no checkpoint that torch.load can read, or not a whole one') from None


def set_checkpoint_reader(trust_pickle: bool) -> None:
    """Make MMEngine read every checkpoint as :func:`load_checkpoint` does.

    Its own reader runs whatever code a file holds as soon as the safe way has refused it.
    """

    def load_from_file(filename: str, map_location: str | None = None) -> object:
        path = Path(filename).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f'{path} can not be found')
        try:
            return load_checkpoint(path, map_location, trust_pickle)
        except ValueError as error:
            raise ValueError(f'{path} {error}') from None

    CheckpointLoader.register_scheme('', load_from_file, force=True)
    if not trust_pickle:  # PyTorch's own word for what MMEngine downloads
        os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = '1'
        if _CAN_ALLOW:
            torch.serialization.add_safe_globals(_HARMLESS)


def last_checkpoint(work_dir: Path) -> Path | None:
    """The checkpoint of a run that was written last, of those that are whole."""
    checkpoints = [
        path for path in work_dir.glob('*.pth') if re.fullmatch(r'(epoch|iter)_\d+', path.stem)
    ]
    for path in sorted(checkpoints, key=lambda path: path.stat().st_mtime, reverse=True):
        if _is_whole(path):
            return path
        print(f'{path} is not whole: passed over')
    return None


def _is_whole(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except zipfile.BadZipFile:
        return False

"""Read checkpoints that contain tensors and MMEngine's records, without running code from them."""

import os
import re
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from pickle import UnpicklingError
from reprlib import repr as shorten

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn


def _statistic(owner: object, name: str) -> object:
    """Stand-in for ``getattr``, limited to what unpickling MMEngine's HistoryBuffer requires."""
    if owner is not HistoryBuffer or name not in ('min', 'max', 'current', 'mean'):
        raise UnpicklingError('GLOBAL builtins.getattr of anything but a statistic')
    return getattr(owner, name)


# Types in MMEngine's checkpoints: the run's log and the dataset's metainfo.
_SAFE_GLOBALS = [
    HistoryBuffer,
    (_statistic, 'builtins.getattr'),
    np.ndarray,
    np.dtype,
    *(type(np.dtype(kind)) for kind in ('bool', 'uint8', 'int64', 'float32', 'float64')),
    # NumPy 1 pickles them under numpy.core, NumPy 2 under numpy._core.
    *(
        (function, f'numpy.{core}.multiarray.{function.__name__}')
        for core in ('core', '_core')
        for function in (np.ndarray.__reduce__(np.empty(0))[0], np.float64().__reduce__()[0])
    ),
]
# PyTorch before 2.6 cannot allow a global under another name, so there only tensors are safe.
_HAS_NAMED_GLOBALS = torch.__version__ >= (2, 6)


def load_checkpoint(
    path: Path,
    map_location: str | torch.device | None = 'cpu',
    trust_pickle: bool = False,
    harmless: Iterable = (),
) -> object:
    """Load a checkpoint that contains only tensors, MMEngine's records and ``harmless`` types.

    Args:
        path: checkpoint file.
        map_location: see :func:`torch.load`.
        trust_pickle: load any pickle, which may run code from the file.
        harmless: further globals to allow, see :func:`torch.serialization.safe_globals`.

    Raises:
        OSError: if the file cannot be opened.
        ValueError: if the file is not a checkpoint, is truncated, or could run code.
    """
    allowed = (
        torch.serialization.safe_globals([*_SAFE_GLOBALS, *harmless])
        if _HAS_NAMED_GLOBALS
        else nullcontext()
    )
    with path.open('rb') as file, allowed:
        try:
            return torch.load(file, map_location=map_location, weights_only=not trust_pickle)
        except Exception as error:  # torch.load raises any exception on other files, OSError too
            unsafe = re.search(r'GLOBAL ([\w.]+)', str(error))
            if unsafe:
                raise ValueError(
                    f'contains {unsafe[1]}, which could run code when loaded; '
                    'pass --trust-pickle, in Python trust_pickle=True, if you trust the file'
                ) from None
            raise ValueError(
                'is not a checkpoint that torch.load can read, or is truncated'
            ) from None


def find_state_dict(
    checkpoint: object, containers: tuple[str, ...] = ('state_dict',)
) -> dict[str, Tensor]:
    """Find the state dict under one of the keys of a checkpoint, which may also be a bare one.

    Returns:
        The tensors by their names, without the 'module.' of a distributed model.

    Raises:
        ValueError: if there is none.
    """
    if not isinstance(checkpoint, dict):
        raise ValueError(f'holds a {type(checkpoint).__name__}, not a dict')
    key = next((key for key in containers if key in checkpoint), None)
    state = checkpoint if key is None else checkpoint[key]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(
            f'has no state dict under {" or ".join(containers)}, got keys {shorten([*checkpoint])}'
        )
    _check_names(state)
    for name, tensor in state.items():
        if not _is_plain(tensor):
            raise ValueError(
                f'has a {type(tensor).__name__} of {tensor.layout}, {tensor.dtype}, on {tensor.device} '
                f'as {name}, which must be dense with a value for each element'
            )
    prefix = 'module.' if all(name.startswith('module.') for name in state) else ''
    return {name.removeprefix(prefix): tensor.detach() for name, tensor in state.items()}


def _check_names(state: object) -> None:
    if not isinstance(state, dict):
        raise ValueError(f'has no state dict under state_dict, got a {type(state).__name__}')
    for name in state:
        if not isinstance(name, str):
            raise ValueError(f'has the key {shorten(name)}, which must be a text')


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is dense and in memory, with elements that do not share any."""
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.layout is torch.strided
        and not (tensor.is_quantized or tensor.is_meta or tensor.is_nested)
        and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
    )


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


def set_checkpoint_reader(trust_pickle: bool) -> None:
    """Make MMEngine read every checkpoint with :func:`load_checkpoint`.

    MMEngine's own reader falls back to running the code in a file when safe loading fails.
    """

    def load_from_file(filename: str, map_location: str | None = None) -> object:
        path = Path(filename).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f'{path} can not be found')
        try:
            checkpoint = load_checkpoint(path, map_location, trust_pickle)
            if isinstance(checkpoint, dict):
                _check_names(checkpoint.get('state_dict', checkpoint))
            return checkpoint
        except ValueError as error:
            raise ValueError(f'{path} {error}') from None

    CheckpointLoader.register_scheme('', load_from_file, force=True)
    if not trust_pickle:
        # MMEngine downloads checkpoints with another reader; this makes PyTorch load them safely.
        os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = '1'
        if _HAS_NAMED_GLOBALS:
            torch.serialization.add_safe_globals(_SAFE_GLOBALS)


def last_checkpoint(work_dir: Path) -> Path | None:
    """The most recent complete checkpoint in ``work_dir``, or None."""
    checkpoints = [
        path for path in work_dir.glob('*.pth') if re.fullmatch(r'(epoch|iter)_\d+', path.stem)
    ]
    for path in sorted(checkpoints, key=lambda path: path.stat().st_mtime, reverse=True):
        if _is_complete(path):
            return path
        print(f'{path} is truncated or corrupt: skipped')
    return None


def _is_complete(path: Path) -> bool:
    with path.open('rb') as file:
        try:
            return zipfile.ZipFile(file).testzip() is None
        except Exception:  # zipfile raises any exception on other files
            return False

"""Load a backbone from a checkpoint of any model that contains it."""

import hashlib
import re
from pathlib import Path
from urllib.parse import urlparse

import torch
from torch import nn

from .checkpoints import checkpoint_of_this_model, find_state_dict, load_checkpoint

# What belongs to single outputs of a backbone. A classifier and a detector use different outputs.
_OF_OUTPUTS = re.compile(r'stages\.\d+\.norm\.|pyramid\.')


def load_backbone(backbone: nn.Module, source: str | Path, trust_pickle: bool = False) -> None:
    """Load all weights of a backbone.

    Only the norms and pyramid layers of its outputs may be missing from the checkpoint, and keep their
    values, or be there in excess: a classifier has the norm of the last stage alone.

    Args:
        backbone: one of :mod:`soft_mm.models.backbones`.
        source: path or URL of a checkpoint of the backbone, or of a classifier, detector or
            segmentor, whose names begin with 'backbone.'. Downloads are kept in PyTorch's hub folder.
        trust_pickle: allow the checkpoint to run code when it is loaded.

    Raises:
        OSError: if the file cannot be read or downloaded.
        ValueError: if it is not a checkpoint, or could run code; if weights are missing, unexpected or
            misshapen, with their names.
    """
    is_url = str(source).startswith(('http://', 'https://'))
    path = _download(source) if is_url else Path(source).expanduser()
    try:
        state = find_state_dict(load_checkpoint(path, trust_pickle=trust_pickle))
    except ValueError as error:
        raise ValueError(f'{source} {error}') from None
    prefix = 'backbone.' if any(name.startswith('backbone.') for name in state) else ''
    loaded = {
        name.removeprefix(prefix): tensor
        for name, tensor in state.items()
        if name.startswith(prefix)
    }
    own = backbone.state_dict()
    kept = {name: tensor for name, tensor in own.items() if _OF_OUTPUTS.match(name)}
    used = {
        name: tensor
        for name, tensor in loaded.items()
        if name in own or not _OF_OUTPUTS.match(name)
    }
    with checkpoint_of_this_model(str(source)):
        backbone.load_state_dict(kept | used)


def _download(url: str) -> Path:
    """Download a file once, under a name of its own for each URL."""
    name = f'{hashlib.sha256(url.encode()).hexdigest()[:8]}-{Path(urlparse(url).path).name}'
    path = Path(torch.hub.get_dir(), 'checkpoints', name)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path))
        except OSError as error:
            raise OSError(f'{url} cannot be downloaded: {error}') from error
    return path

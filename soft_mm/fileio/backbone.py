"""Load a backbone from a checkpoint of any model that contains it."""

import hashlib
import re
from pathlib import Path
from urllib.parse import urlparse

import torch
from mmengine.logging import print_log
from mmengine.model import PretrainedInit, update_init_info
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from .checkpoints import checkpoint_of_this_model, find_state_dict, load_checkpoint

# What belongs to single outputs of a backbone. A classifier and a detector use different outputs.
_OF_OUTPUTS = re.compile(r'stages\.\d+\.norm\.|pyramid\.')
_STEM = re.compile(r'stages\.0\.patch_embed\.(0|proj)\.weight')


def load_backbone(backbone: nn.Module, source: str | Path, trust_pickle: bool = False) -> None:
    """Load all weights of a backbone.

    Only the norms and pyramid layers of its outputs may be missing from the checkpoint, and keep their
    values, or be there in excess: a classifier has the norm of the last stage alone. Position embeddings
    and relative position biases of another size are resized, and the filters of the stem are adapted to
    another number of input channels, see :func:`adapt_filters`.

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
        checkpoint = load_checkpoint(path, trust_pickle=trust_pickle)
    except ValueError as error:
        raise ValueError(f'{source} {error}') from None
    _load(backbone, checkpoint, str(source))


class PretrainedBackbone(PretrainedInit):
    """MMEngine's initialiser 'Pretrained', which loads a backbone's weights as :func:`load_backbone` does.

    MMEngine's own only warns about weights that are missing or do not fit.

    Args:
        checkpoint (str): path or URL, of any kind that MMEngine's ``CheckpointLoader`` reads.
        prefix (str, optional): what the names of the backbone's weights begin with; by default
            'backbone.' if there are such names.
        map_location (str): see :func:`torch.load`.

    Raises:
        OSError: if the file cannot be read.
        ValueError: as :func:`load_backbone`; names the field of ``init_cfg``.
    """

    def __call__(self, module: nn.Module) -> None:
        source = f'init_cfg.checkpoint={self.checkpoint}'
        try:
            checkpoint = CheckpointLoader.load_checkpoint(str(self.checkpoint), self.map_location)
        except FileNotFoundError:
            raise FileNotFoundError(
                f'{source} can not be found: it must be a file or a URL, or init_cfg None to start '
                'from random weights'
            ) from None
        _load(module, checkpoint, source, self.prefix)
        if hasattr(module, '_params_init_info'):
            update_init_info(module, init_info=self._get_init_info())


def adapt_filters(filters: Tensor, in_channels: int) -> Tensor:
    """Adapt the filters of a stem to another number of input channels.

    Additional channels repeat the filters in their order, and all copies of a filter are divided by
    their number. For fewer channels, each gets the mean filter, scaled. The response to an image whose
    channels are equal stays the same, as in timm's ``adapt_input_conv`` for 1, 6, 9, … channels.

    Args:
        filters: ``(C, I, k, k)``.
        in_channels: new number J of input channels.

    Returns:
        ``(C, J, k, k)``.
    """
    before = filters.shape[1]
    if in_channels < before:
        mean = filters.mean(1, keepdim=True) * (before / in_channels)
        return mean.repeat(1, in_channels, 1, 1)
    copied = torch.arange(in_channels) % before
    return filters[:, copied] / copied.bincount()[copied].view(-1, 1, 1)


def _load(backbone: nn.Module, checkpoint: object, source: str, prefix: str | None = None) -> None:
    """Load the weights whose names begin with a prefix, by default 'backbone.' if there are any."""
    try:
        state = find_state_dict(checkpoint)
    except ValueError as error:
        raise ValueError(f'{source} {error}') from None
    if prefix is None:
        prefix = 'backbone.' if any(name.startswith('backbone.') for name in state) else ''
    elif prefix:
        prefix = f'{prefix.removesuffix(".")}.'  # as in MMEngine
    loaded = {
        name.removeprefix(prefix): tensor
        for name, tensor in state.items()
        if name.startswith(prefix)
    }
    if not loaded:
        begins = sorted({name.partition('.')[0] for name in state})
        raise ValueError(
            f'{source} has no weights whose names begin with prefix={prefix!r}; they begin with '
            f'{begins[:10]}'
        )
    own = backbone.state_dict()
    kept = {name: tensor for name, tensor in own.items() if _OF_OUTPUTS.match(name)}
    used = {
        name: _fit(name, tensor, own[name], source) if name in own else tensor
        for name, tensor in loaded.items()
        if name in own or not _OF_OUTPUTS.match(name)
    }
    with checkpoint_of_this_model(source):
        backbone.load_state_dict(kept | used)


def _fit(name: str, tensor: Tensor, own: Tensor, source: str) -> Tensor:
    """Convert a tensor to the dtype of the backbone's own one, and to its channels if it is the stem's."""
    if tensor.is_floating_point() != own.is_floating_point():
        raise ValueError(
            f'{source}: {name} must be of a {"floating-point" if own.is_floating_point() else "integer"} '
            f'dtype, such as {own.dtype}, got {tensor.dtype}'
        )
    tensor = tensor.to(own.dtype)
    if not _STEM.fullmatch(name) or tensor.ndim != 4 or tensor.shape[1] in (0, own.shape[1]):
        return tensor
    before, after = tensor.shape[1], own.shape[1]
    print_log(
        f'{source} has {before} input channels, this model in_channels={after}: the filters of the '
        f'stem are {"averaged" if after < before else "repeated"}',
        logger='current',
    )
    return adapt_filters(tensor, after)


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

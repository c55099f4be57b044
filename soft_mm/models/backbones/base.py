"""Base class of all backbones: stages, shared arguments, outputs and freezing."""

import re
from collections.abc import Sequence
from inspect import Parameter, signature
from numbers import Real

import torch
from mmengine.model import BaseModule, PretrainedInit
from mmengine.utils import to_2tuple
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from ...fileio.backbone import PretrainedBackbone
from ...ops.shapes import ceil_div
from ..layers.maps import as_map

PRETRAINED = 'Pretrained', PretrainedInit  # both stand for MMEngine's initialiser in a config


class Stage(nn.Module):
    """Patch embedding, position embedding and a sequence of blocks.

    Args:
        patch_embed (nn.Module): downsamples the image or the previous stage's feature map.
        blocks (Sequence[nn.Module]): blocks, called with the tokens and the feature map's size.
        pos_embed (nn.Module, optional): adds the position embedding to the feature map.
        norm (nn.Module, optional): norm layer for the feature map or class token that the backbone
            returns from this stage; the next stage receives the feature map without it.
        with_cp (bool): use activation checkpointing: recompute each block in the backward pass
            instead of storing its activations.
    """

    def __init__(
        self,
        patch_embed: nn.Module,
        blocks: Sequence[nn.Module],
        pos_embed: nn.Module | None = None,
        norm: nn.Module | None = None,
        with_cp: bool = False,
    ) -> None:
        super().__init__()
        self.patch_embed = patch_embed
        self.pos_embed = pos_embed or nn.Identity()
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm or nn.Identity()
        self.with_cp = with_cp

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """``(B, C_in, H_in, W_in)`` -> feature map ``(B, C, H, W)`` and None (no class token)."""
        x = self.pos_embed(self.patch_embed(x))
        hw = x.shape[-2:]
        return as_map(self._run_blocks(x.flatten(2).mT, hw), hw), None

    def _run_blocks(self, x: Tensor, hw: tuple[int, int]) -> Tensor:
        for block in self.blocks:
            if self.with_cp and torch.is_grad_enabled():
                x = checkpoint(block, x, hw, use_reentrant=False)
            else:
                x = block(x, hw)
        return x


class ClassTokenStage(Stage):
    """Final stage that prepends a class token to the tokens of the feature map.

    Args:
        dims (int): embed dims of the tokens.
        *args, **kwargs: arguments of :class:`Stage`.
    """

    def __init__(self, dims: int, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.cls_token = nn.Parameter(torch.empty(1, 1, dims))
        self.cls_pos_embed = nn.Parameter(torch.empty(1, 1, dims))
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.cls_pos_embed, std=0.02)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``(B, C_in, H_in, W_in)`` -> feature map ``(B, C, H, W)`` and class token ``(B, C)``."""
        x = self.pos_embed(self.patch_embed(x))
        hw = x.shape[-2:]
        cls_token = (self.cls_token + self.cls_pos_embed).expand(x.shape[0], -1, -1)
        x = self._run_blocks(torch.cat((cls_token, x.flatten(2).mT), dim=1), hw)
        return as_map(x[:, 1:], hw), x[:, 0]


class Backbone(BaseModule):
    """Base class of the backbones: a sequence of stages, of which selected ones are returned.

    A subclass sets ``arch_zoo`` and, in its constructor, calls this one, appends one
    :class:`Stage` per entry of ``arch['channels']`` to ``self.stages`` and calls ``_initialise``.

    Args:
        arch (str | dict): name of an architecture in ``arch_zoo``, or a dict with the same keys as
            its entries, each a sequence with one value per stage.
        depths (Sequence[int], optional): number of blocks per stage, overriding those of ``arch``.
        img_size (int | tuple[int, int]): input size, ``(H, W)`` or one side of a square, that the
            position embeddings are created for. Images of any size are accepted: the embeddings
            are resized to them.
        in_channels (int): number of input channels.
        drop_path_rate (float): stochastic depth rate of the last block; the rate increases
            linearly from 0 over all blocks.
        out_indices (int | Sequence[int], optional): indices of the stages to return; negative ones
            count from the end. By default all stages for 'featmap', otherwise the last one.
        out_type (str): 'featmap' returns feature maps, 'avg_featmap' their global averages and
            'cls_token' the class token, if the last stage has one.
        frozen_stages (int): -1 freezes nothing, 0 the first patch embedding, n the first n stages.
            Frozen parameters get no gradient, and frozen norm and dropout layers stay in eval mode.
        norm_eval (bool): keep batch norm layers in eval mode, with fixed running statistics.
        with_cp (bool): use activation checkpointing in every block, which saves memory.
        init_cfg (dict | list[dict], optional): MMEngine's initialisation config, such as
            ``dict(type='Pretrained', checkpoint=…, prefix='backbone.')``. Pretrained weights may be
            of a model with another head, image size and number of input channels, see
            :func:`soft_mm.fileio.load_backbone`.

    Attributes:
        out_channels (list[int]): channels of each output.
        out_strides (list[int]): stride of each feature map that is returned or averaged.

    Raises:
        TypeError: if the backbone does not have an argument; lists those it has.
        ValueError: if the value of an argument is invalid; names the allowed ones.
    """

    arch_zoo: dict[str, dict]
    strides: tuple[int, ...] = (4, 8, 16, 32)  # one per stage
    out_types = ('featmap', 'avg_featmap')  # plus 'cls_token' if the last stage has a class token

    def __init__(
        self,
        arch: str | dict,
        depths: Sequence[int] | None = None,
        img_size: int | tuple[int, int] = 224,
        in_channels: int = 3,
        drop_path_rate: float = 0.0,
        out_indices: int | Sequence[int] | None = None,
        out_type: str = 'featmap',
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict | None = None,
        **unknown,
    ) -> None:
        if unknown:
            raise TypeError(
                f'{type(self).__name__} has no argument {", ".join(unknown)}; '
                f'it has {", ".join(self._arguments())}'
            )
        super().__init__(_parse_init_cfg(init_cfg))
        self.arch = self._parse_arch(arch, depths)
        self.img_size = to_2tuple(img_size)
        if len(self.img_size) != 2 or not _are_integers(self.img_size, 1):
            raise ValueError(f'img_size must be one or two positive integers, got {img_size!r}')
        if not _are_integers([in_channels], 1):
            raise ValueError(f'in_channels must be a positive integer, got {in_channels!r}')
        self.in_channels = in_channels
        if not (isinstance(drop_path_rate, Real) and 0 <= drop_path_rate < 1):
            raise ValueError(f'drop_path_rate must be a number in [0, 1), got {drop_path_rate!r}')
        self.drop_path_rate = drop_path_rate
        self.out_type = out_type
        self.out_indices = self._parse_out_indices(out_indices)
        self.out_channels = [self._map_channels()[i] for i in self.out_indices]
        self.out_strides = [self._map_strides()[i] for i in self.out_indices]
        num_stages = len(self.arch['channels'])
        if frozen_stages not in range(-1, num_stages + 1):
            raise ValueError(
                f'frozen_stages must be an integer from -1 to {num_stages}, got {frozen_stages}'
            )
        for name, value in ('norm_eval', norm_eval), ('with_cp', with_cp):
            if not isinstance(value, bool):
                raise ValueError(f'{name} must be True or False, got {value!r}')
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.with_cp = with_cp
        self.stages = nn.ModuleList()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Images ``(B, in_channels, H, W)`` -> one tensor for each of ``out_indices``.

        Feature maps ``(B, C, ⌈H/s⌉, ⌈W/s⌉)`` at stride s for out_type 'featmap', vectors
        ``(B, C)`` otherwise.
        """
        self._check_images(x)
        outs = []
        for i, stage in enumerate(self.stages[: max(self.out_indices) + 1]):
            x, cls_token = stage(x)
            if i not in self.out_indices:
                continue
            if self.out_type == 'cls_token':
                outs.append(stage.norm(cls_token[..., None, None]).flatten(1))
            elif self.out_type == 'avg_featmap':
                outs.append(stage.norm(x).mean((2, 3)))
            else:
                # mmcv's RoIAlign silently misreads feature maps that are not contiguous.
                outs.append(stage.norm(x).contiguous())
        return tuple(outs)

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Depth of a parameter, and the number of depths, for learning rates that decay by layer.

        The stem has depth 0 and each block one more than the last. A stage's patch embedding, position
        embedding and class token have the depth of its first block. What follows the blocks, such as
        the norms of the outputs, has the last depth, and so does the rest of the model, without the
        ``prefix``.

        Args:
            param_name (str): name of the parameter in the model.
            prefix (str): what the names of the backbone's parameters begin with in the model.
        """
        depths = self.arch['depths']
        number = sum(depths) + 2
        match = re.match(rf'{re.escape(prefix)}stages\.(\d+)\.(\w+)(?:\.(\d+))?', param_name)
        if match is None or match[2] == 'norm':
            return number - 1, number
        stage = int(match[1])
        if match[2] == 'blocks':
            return sum(depths[:stage]) + int(match[3]) + 1, number
        return sum(depths[:stage]) + 1 if stage else 0, number

    def train(self, mode: bool = True) -> 'Backbone':
        """Set the training mode, keeping frozen modules in eval mode."""
        super().train(mode)
        self._freeze()
        return self

    def _check_images(self, x: Tensor) -> None:
        """Raise ValueError for images that the model does not take."""
        name, is_tensor = type(self).__name__, isinstance(x, Tensor)
        if not is_tensor or x.ndim != 4:
            raise ValueError(
                f'{name} takes images as one tensor (B, {self.in_channels}, H, W), '
                f'got {tuple(x.shape) if is_tensor else f"a {type(x).__name__}"}'
            )
        if x.shape[1] != self.in_channels:
            raise ValueError(
                f'{name} has in_channels={self.in_channels}, got images with {x.shape[1]} channels'
            )

    def _drop_rates(self) -> list[list[float]]:
        """Stochastic depth rate of every block, per stage, increasing linearly over all blocks."""
        depths = self.arch['depths']
        rates = torch.linspace(0, self.drop_path_rate, sum(depths), device='cpu').split(depths)
        return [stage.tolist() for stage in rates]

    def _map_size(self, stage: int) -> tuple[int, int]:
        """Height and width of a stage's feature map for an image of ``img_size``."""
        return tuple(ceil_div(side, self.strides[stage]) for side in self.img_size)

    def _initialise(self) -> None:
        """Initialise linear layers and freeze stages; call it last in a subclass's constructor."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self._freeze()

    def _freeze(self) -> None:
        frozen = list(self.stages[: max(self.frozen_stages, 0)])
        if self.frozen_stages == 0:
            frozen.append(self.stages[0].patch_embed)
        for module in frozen:
            module.eval().requires_grad_(False)
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()

    def _map_channels(self) -> tuple[int, ...]:
        """Channels of every feature map that ``out_indices`` can select."""
        return self.arch['channels']

    def _map_strides(self) -> tuple[int, ...]:
        """Strides of the same feature maps."""
        return self.strides

    @classmethod
    def _arguments(cls) -> list[str]:
        """Names of all constructor arguments, model-specific ones first."""
        own, shared = (list(signature(c.__init__).parameters.values()) for c in (cls, Backbone))
        return list(
            dict.fromkeys(
                parameter.name
                for parameter in own[1:] + shared[1:]
                if parameter.kind is not Parameter.VAR_KEYWORD
            )
        )

    @classmethod
    def _parse_arch(cls, arch: str | dict, depths: Sequence[int] | None) -> dict:
        if not isinstance(arch, dict):
            if arch not in list(cls.arch_zoo):
                raise ValueError(
                    f'arch must be one of {list(cls.arch_zoo)} or a dict, got {arch!r}'
                )
            arch = cls.arch_zoo[arch]
        arch = dict(arch)
        if depths is not None:
            arch['depths'] = depths
        lengths = {key: len(value) for key, value in next(iter(cls.arch_zoo.values())).items()}
        if not all(map(_is_sequence, arch.values())) or lengths != {
            key: len(value) for key, value in arch.items()
        }:
            raise ValueError(
                f'arch, with depths, must hold sequences of these lengths, {lengths}, got {arch}'
            )
        for key, value in arch.items():
            least = 0 if key.endswith('depths') else 1
            if not _are_integers(value, least):
                raise ValueError(f'{key} of arch must be integers >= {least}, got {value}')
        return {key: tuple(value) for key, value in arch.items()}

    def _parse_out_indices(self, out_indices: int | Sequence[int] | None) -> tuple[int, ...]:
        if self.out_type not in self.out_types:
            raise ValueError(
                f'out_type must be one of {list(self.out_types)}, got {self.out_type!r}'
            )
        number = len(self._map_channels())
        if out_indices is None:
            out_indices = range(number) if self.out_type == 'featmap' else -1
        if isinstance(out_indices, int):
            out_indices = (out_indices,)
        if not _is_sequence(out_indices) or not out_indices:
            raise ValueError(
                f'out_indices must be an integer or a sequence of integers, got {out_indices!r}'
            )
        for i in out_indices:
            if i not in range(-number, number):
                raise ValueError(
                    f'out_indices must be integers from {-number} to {number - 1}, got {i}'
                )
        out_indices = tuple(sorted({i % number for i in out_indices}))
        if self.out_type == 'cls_token' and out_indices != (number - 1,):
            raise ValueError(
                f"out_type 'cls_token' needs out_indices=({number - 1},), the stage "
                f'with the class token, got {out_indices}'
            )
        return out_indices


def _parse_init_cfg(init_cfg: dict | list[dict] | None) -> list[dict]:
    """MMEngine's initialisation configs, with ``PretrainedBackbone`` in place of 'Pretrained'.

    Pretrained weights come last, so that nothing overwrites them.
    """
    cfgs = [init_cfg] if isinstance(init_cfg, dict) else init_cfg or []
    if not _is_sequence(cfgs) or not all(isinstance(cfg, dict) and 'type' in cfg for cfg in cfgs):
        raise ValueError(
            f'init_cfg must be None, a dict with a type or a list of such dicts, got {init_cfg!r}'
        )
    pretrained = [cfg for cfg in cfgs if cfg['type'] in PRETRAINED]
    return [
        *(cfg for cfg in cfgs if cfg not in pretrained),
        *(dict(cfg, type=PretrainedBackbone) for cfg in pretrained),
    ]


def _is_sequence(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _are_integers(values: Sequence, least: int) -> bool:
    return all(isinstance(value, int) and value >= least for value in values)

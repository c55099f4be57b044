"""What all backbones share: their arguments, their outputs and what they freeze."""

from collections.abc import Sequence

from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

OUT_TYPES = ('featmap', 'avg_featmap', 'cls_token')


class Backbone(BaseModule):
    """Four stages, each a map smaller than the last one's, of which ``out_indices`` are returned.

    A subclass sets ``arch_zoo``, calls this constructor and then fills ``self.stages``: modules
    with a ``patch_embed`` that take an image or map and return a map ``(B, C, H, W)`` and a class
    token ``(B, C)`` or None.

    Args:
        arch (str | dict): a name in ``arch_zoo``, or a dict with the keys of its entries.
        depths (Sequence[int], optional): number of blocks of each stage, in place of the arch's.
        out_indices (int | Sequence[int], optional): see :class:`SOFT`.
        out_type (str): see :class:`SOFT`.
        frozen_stages (int): see :class:`SOFT`.
        norm_eval (bool): see :class:`SOFT`.
        init_cfg (dict, optional): MMEngine's initialisation.
    """

    arch_zoo: dict[str, dict]

    def __init__(self, arch: str | dict, depths: Sequence[int] | None,
                 out_indices: int | Sequence[int] | None, out_type: str, frozen_stages: int,
                 norm_eval: bool, init_cfg: dict | None) -> None:
        super().__init__(init_cfg)
        self.arch = self._parse_arch(arch, depths)
        self.out_type = out_type
        self.out_indices = self._parse_out_indices(out_indices, out_type)
        self.out_channels = [self.arch['channels'][i] for i in self.out_indices]
        if frozen_stages not in range(-1, 5):
            raise ValueError(f'frozen_stages must be an integer from -1 to 4, got {frozen_stages}')
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.stages = nn.ModuleList()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Image ``(B, in_channels, H, W)`` -> one tensor for each of ``out_indices``.

        Maps ``(B, C, H, W)`` at strides 4 to 32 for 'featmap', vectors ``(B, C)`` otherwise.
        """
        outs = []
        for i, stage in enumerate(self.stages[:max(self.out_indices) + 1]):
            x, cls_token = stage(x)
            if i not in self.out_indices:
                continue
            if self.out_type == 'featmap':
                outs.append(x)
            elif self.out_type == 'avg_featmap':
                outs.append(x.mean((2, 3)))
            else:
                outs.append(cls_token)
        return tuple(outs)

    def train(self, mode: bool = True) -> 'Backbone':
        """Set the mode of all that is not frozen."""
        super().train(mode)
        self._freeze()
        return self

    def _freeze(self) -> None:
        """Put what is frozen in eval mode, without gradient: the last act of a constructor."""
        frozen = list(self.stages[:max(self.frozen_stages, 0)])
        if self.frozen_stages == 0:
            frozen.append(self.stages[0].patch_embed)
        for module in frozen:
            module.eval().requires_grad_(False)
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()

    @classmethod
    def _parse_arch(cls, arch: str | dict, depths: Sequence[int] | None) -> dict:
        if isinstance(arch, str):
            if arch not in cls.arch_zoo:
                raise ValueError(f'arch must be one of {list(cls.arch_zoo)} or a dict, '
                                 f'got {arch!r}')
            arch = cls.arch_zoo[arch]
        arch = {key: tuple(value) for key, value in arch.items()}
        if depths is not None:
            arch['depths'] = tuple(depths)
        lengths = {key: len(value) for key, value in next(iter(cls.arch_zoo.values())).items()}
        if {key: len(value) for key, value in arch.items()} != lengths:
            raise ValueError(f'arch and depths must give a sequence of each of these lengths, '
                             f'{lengths}, got {arch}')
        return arch

    @staticmethod
    def _parse_out_indices(out_indices: int | Sequence[int] | None, out_type: str) -> tuple:
        if out_type not in OUT_TYPES:
            raise ValueError(f'out_type must be one of {list(OUT_TYPES)}, got {out_type!r}')
        if out_indices is None:
            out_indices = range(4) if out_type == 'featmap' else 3
        if isinstance(out_indices, int):
            out_indices = (out_indices, )
        for i in out_indices:
            if i not in range(-4, 4):
                raise ValueError(f'out_indices must be integers from -4 to 3, got {i}')
        out_indices = tuple(sorted({i % 4 for i in out_indices}))
        if out_type == 'cls_token' and out_indices != (3, ):
            raise ValueError("out_type 'cls_token' needs out_indices=(3,), the stage with the "
                             f'class token, got {out_indices}')
        return out_indices

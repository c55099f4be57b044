"""Turn an authors' SOFT or SOFT-Norm checkpoint into one for our ImageNet configs."""

import re
from math import isqrt

import torch
from authors_checkpoint import State, check, run
from torch import Tensor, nn

from soft_mm import SOFT

# Names inside a block, the authors' and ours; the last stage's blocks have ours already.
BLOCK = {
    'att.mha.W_': 'attn.',
    'att.mha.attn.Qlandmark_op': 'attn.landmark_conv',
    'att.mha.attn.Qnorm_act.0': 'attn.landmark_norm',
    'att.mha.attn.conv': 'attn.dwconv',
    'att.mha.ff': 'attn.proj',
    'att.norm': 'norm',
    'att.ff': 'mlp.fc',
}


def convert(state: State) -> tuple[State, dict]:
    """The authors' state dict -> the classifier's, and the arch that was read from it."""
    arch = read_arch(state)
    converted = {}
    for name, tensor in state.items():
        if match := re.fullmatch(r'pos_embed([1-4])', name):
            stage = f'backbone.stages.{int(match[1]) - 1}'
            if name == 'pos_embed4':  # its first row is the class token's
                converted[f'{stage}.cls_pos_embed'], tensor = tensor[:, :1], tensor[:, 1:]
            converted[f'{stage}.pos_embed.weight'] = _table_to_map(name, tensor)
        elif match := re.fullmatch(r'(block4\.\d+\.attn)\.q\.(weight|bias)', name):
            kv = state.get(f'{match[1]}.kv.{match[2]}', tensor[:0])
            converted[_rename(f'{match[1]}.qkv.{match[2]}')] = torch.cat((tensor, kv))
        elif not re.fullmatch(r'block4\.\d+\.attn\.kv\.(weight|bias)', name):
            converted[_rename(name)] = tensor

    num_classes = len(converted.get('head.fc.bias', ()))
    with torch.device('meta'):
        backbone = SOFT(arch, img_size=4 * isqrt(state['pos_embed1'].shape[1]))
        head = nn.ModuleDict(dict(fc=nn.Linear(arch['channels'][-1], num_classes)))
    check(converted, nn.ModuleDict(dict(backbone=backbone, head=head)))
    names = [name for name, known in SOFT.arch_zoo.items() if known == arch]
    return converted, dict(arch=names[0] if names else arch, num_classes=num_classes)


def read_arch(state: State) -> dict[str, tuple[int, ...]]:
    """The arch dict of :class:`SOFT`, from the names and shapes of the authors' tensors."""
    depths = [0] * 4
    for name in state:
        if match := re.match(r'block([1-4])\.(\d+)\.', name):
            stage = int(match[1]) - 1
            depths[stage] = max(depths[stage], int(match[2]) + 1)
    channels = tuple(_shape(state, f'pos_embed{i}', 3)[-1] for i in (1, 2, 3, 4))
    convs = [_shape(state, f'block{i}.0.att.mha.attn.conv.weight', 4) for i in (1, 2, 3)]
    num_heads = [conv[0] for conv in convs]
    num_heads.append(channels[3] * num_heads[0] // channels[0])  # heads of one width everywhere
    return dict(
        channels=channels,
        num_heads=tuple(num_heads),
        depths=tuple(depths),
        kernel_sizes=tuple(conv[-1] for conv in convs))


def _shape(state: State, name: str, ndim: int) -> torch.Size:
    if name not in state:
        raise ValueError(f'has no {name}: it is not a SOFT checkpoint, or not a whole one')
    if state[name].ndim != ndim:
        raise ValueError(f'wrong shape of {name}: {tuple(state[name].shape)}, not {ndim}-D')
    return state[name].shape


def _table_to_map(name: str, table: Tensor) -> Tensor:
    """``(1, N, C)`` -> ``(1, C, √N, √N)``."""
    side = isqrt(table.shape[1])
    if side * side != table.shape[1]:
        raise ValueError(f'wrong shape of {name}: {table.shape[1]} positions are no square map')
    return table.mT.unflatten(-1, (side, side)).contiguous()


def _rename(name: str) -> str:
    for theirs, ours in BLOCK.items():
        name = name.replace(theirs, ours)
    name = re.sub(r'^patch_embed([1-4])\.proj', lambda m: f'stages.{int(m[1]) - 1}.patch_embed',
                  name)
    name = re.sub(r'^block([1-4])', lambda m: f'stages.{int(m[1]) - 1}.blocks', name)
    name = re.sub(r'^(norm|cls_token)', r'stages.3.\1', name)
    return re.sub(r'^head\.', 'head.fc.', name) if name.startswith('head.') else f'backbone.{name}'


if __name__ == '__main__':
    run(__doc__, ('state_dict', ), 'state_dict_ema', convert)

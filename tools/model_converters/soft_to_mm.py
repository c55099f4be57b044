"""Convert a checkpoint of the authors of SOFT and SOFT-Norm for our ImageNet configs."""

import re
from math import isqrt

import torch
from torch import nn

from soft_mm import SOFT
from soft_mm.fileio.conversion import State, check, join_qkv, run, shape, square_map

# The authors' names within a block and ours; blocks of the last stage already have our names.
BLOCK = {
    'att.mha.W_': 'attn.',
    'att.mha.attn.Qlandmark_op': 'attn.landmarks.conv',
    'att.mha.attn.Qnorm_act.0': 'attn.landmarks.norm',
    'att.mha.attn.conv': 'attn.dwconv',
    'att.mha.ff': 'attn.proj',
    'att.norm': 'norm',
    'att.ff': 'mlp.fc',
}


def convert(state: State) -> tuple[State, dict]:
    """The authors' state dict -> our classifier's, and the arch that it belongs to."""
    arch = read_arch(state)
    converted = {}
    for name, tensor in join_qkv(state).items():
        if match := re.fullmatch(r'pos_embed([1-4])', name):
            stage = f'backbone.stages.{int(match[1]) - 1}'
            if name == 'pos_embed4':  # the first row belongs to the class token
                converted[f'{stage}.cls_pos_embed'], tensor = tensor[:, :1], tensor[:, 1:]
            converted[f'{stage}.pos_embed.weight'] = square_map(name, tensor.squeeze(0))
        else:
            converted[_rename(name)] = tensor

    num_classes = converted.get('head.fc.bias', torch.empty(0)).numel()
    with torch.device('meta'):
        backbone = SOFT(arch, img_size=4 * isqrt(state['pos_embed1'].shape[1]))
        head = nn.ModuleDict(dict(fc=nn.Linear(arch['channels'][-1], num_classes)))
    check(converted, nn.ModuleDict(dict(backbone=backbone, head=head)))
    names = [name for name, known in SOFT.arch_zoo.items() if known == arch]
    return converted, dict(arch=names[0] if names else arch, num_classes=num_classes)


def read_arch(state: State) -> dict[str, tuple[int, ...]]:
    """Infer the arch dict of :class:`SOFT` from the authors' names and shapes."""
    blocks = {match[0] for name in state if (match := re.match(r'block[1-4]\.\d+\.', name))}
    depths = tuple(sum(block.startswith(f'block{i}') for block in blocks) for i in (1, 2, 3, 4))
    channels = tuple(shape(state, f'pos_embed{i}', 3)[-1] for i in (1, 2, 3, 4))
    convs = [shape(state, f'block{i}.0.att.mha.attn.conv.weight', 4) for i in (1, 2, 3)]
    num_heads = [conv[0] for conv in convs]
    num_heads.append(
        channels[3] * num_heads[0] // channels[0]
    )  # all stages have the same head width
    return dict(
        channels=channels,
        num_heads=tuple(num_heads),
        depths=depths,
        kernel_sizes=tuple(conv[-1] for conv in convs),
    )


def _rename(name: str) -> str:
    for theirs, ours in BLOCK.items():
        name = name.replace(theirs, ours)
    name = re.sub(
        r'^patch_embed([1-4])\.proj', lambda m: f'stages.{int(m[1]) - 1}.patch_embed', name
    )
    name = re.sub(r'^block([1-4])', lambda m: f'stages.{int(m[1]) - 1}.blocks', name)
    name = re.sub(r'^(norm|cls_token)', r'stages.3.\1', name)
    return re.sub(r'^head\.', 'head.fc.', name) if name.startswith('head.') else f'backbone.{name}'


if __name__ == '__main__':
    run(__doc__, ('state_dict',), 'state_dict_ema', convert)

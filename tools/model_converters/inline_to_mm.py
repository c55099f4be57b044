"""Convert a checkpoint of InLine's authors, of any model family, for our ImageNet configs."""

import re

import torch
from torch import nn

import soft_mm
from soft_mm.fileio.conversion import State, check, join_qkv, run, shape, square_map

# A tensor that identifies the checkpoints of each family.
MARKS = {
    'InLineDeiT': 'blocks.0.norm1.weight',
    'InLinePVT': 'block1.0.norm1.weight',
    'InLineSwin': 'layers.0.blocks.0.norm1.weight',
    'InLineCSwin': 'stage1.0.norm1.weight',
}
# Patterns of the authors' names and their replacements, applied in this order.
NAMES = {
    'InLineDeiT': [
        (r'^(patch_embed|blocks|norm|cls_token)', r'stages.0.\1'),
    ],
    'InLinePVT': [
        (r'^patch_embed(\d)', lambda m: f'stages.{int(m[1]) - 1}.patch_embed'),
        (r'^block(\d)', lambda m: f'stages.{int(m[1]) - 1}.blocks'),
    ],
    'InLineSwin': [
        (r'^patch_embed', 'stages.0.patch_embed'),
        (r'^layers\.(\d)\.downsample', lambda m: f'stages.{int(m[1]) + 1}.patch_embed'),
        (r'^layers', 'stages'),
        (r'^norm', 'stages.3.norm'),
        (r'relative_position_bias_table$', 'relative_position_bias.weight'),
    ],
    'InLineCSwin': [
        (r'^stage1_conv_embed\.0', 'stages.0.patch_embed.proj'),
        (r'^stage1_conv_embed\.2', 'stages.0.patch_embed.norm'),
        (r'^merge(\d)\.conv', r'stages.\1.patch_embed.proj'),
        (r'^merge(\d)\.norm', r'stages.\1.patch_embed.norm'),
        (r'^stage(\d)', lambda m: f'stages.{int(m[1]) - 1}.blocks'),
        (r'^norm', 'stages.3.norm'),
        (r'^(stages\.[01]\.blocks\.\d+)\.attns\.0\.get_v', r'\1.attn.lepe'),
        (r'attns\.(\d)\.get_v', r'attn.lepe.\1'),
        (r'attns\.0\.residual', 'attn.residual'),
        (r'(blocks\.\d+)\.(qkv|proj)\.', r'\1.attn.\2.'),
    ],
}
EVERY_FAMILY = [
    (r'attn\.residual', 'attn.filters'),
    (r'^stages', 'backbone.stages'),
    (r'^head', 'head.fc'),
]
REBUILT_BY_THE_MODEL = ('relative_position_index', 'attn_mask')


def convert(state: State) -> tuple[State, dict]:
    """The authors' state dict -> our classifier's, and the model that it belongs to."""
    family = next((family for family, mark in MARKS.items() if mark in state), None)
    if family is None:
        raise ValueError(
            f'has none of {", ".join(MARKS.values())}: it is not an InLine '
            'checkpoint, or it is incomplete'
        )
    converted = {}
    for name, tensor in join_qkv(state).items():
        if match := re.fullmatch(r'pos_embed([1-4]?)', name):
            shape(state, name, 3)
            stage = f'backbone.stages.{int(match[1] or 1) - 1}'
            if family == 'InLineDeiT':  # the first row belongs to the class token
                converted[f'{stage}.cls_pos_embed'], tensor = tensor[:, :1], tensor[:, 1:]
            converted[f'{stage}.pos_embed.weight'] = square_map(name, tensor.squeeze(0))
        elif not name.endswith(REBUILT_BY_THE_MODEL):
            if name.endswith('relative_position_bias_table'):
                tensor = square_map(name, tensor)
            for theirs, ours in NAMES[family] + EVERY_FAMILY:
                name = re.sub(theirs, ours, name)
            converted[name] = tensor

    model = getattr(soft_mm, family)
    arch = read_arch(converted, next(iter(model.arch_zoo.values())))
    sizes = read_sizes(converted, family)
    num_classes = converted.get('head.fc.bias', torch.empty(0)).numel()
    with torch.device('meta'):
        backbone = model(arch, out_type='avg_featmap', **sizes)
        head = nn.ModuleDict(dict(fc=nn.Linear(arch['channels'][-1], num_classes)))
    check(converted, nn.ModuleDict(dict(backbone=backbone, head=head)))
    names = [name for name, known in model.arch_zoo.items() if known == arch]
    return converted, dict(
        type=f'soft_mm.{family}', arch=names[0] if names else arch, **sizes, num_classes=num_classes
    )


def read_arch(converted: State, example: dict) -> dict[str, tuple[int, ...]]:
    """Infer an arch dict with the keys of ``example`` from the converted names and shapes."""
    values = {key: [] for key in ('channels', 'depths', 'inline_depths', 'num_heads', 'mlp_ratios')}
    for i in range(len(example['channels'])):
        stage = f'backbone.stages.{i}.blocks'
        (channels,) = shape(converted, f'{stage}.0.norm1.weight', 1)
        filters, bias = (
            f'{stage}.0.attn.{name}.weight' for name in ('filters.0', 'relative_position_bias')
        )
        if bias in converted:
            num_heads = shape(converted, bias, 4)[1]
        elif filters in converted or i == 0:
            num_heads = channels // shape(converted, filters, 3)[1]
        else:  # all stages have the same head width
            num_heads = channels * values['num_heads'][0] // values['channels'][0]
        values['channels'].append(channels)
        values['num_heads'].append(num_heads)
        values['mlp_ratios'].append(shape(converted, f'{stage}.0.mlp.fc1.weight', 2)[0] // channels)
        for key, mark in (('depths', 'norm1'), ('inline_depths', 'attn.filters.0')):
            values[key].append(
                sum(
                    bool(re.fullmatch(rf'{stage}\.\d+\.{mark}\.weight', name)) for name in converted
                )
            )
    return {key: tuple(values[key]) for key in example}


def read_sizes(converted: State, family: str) -> dict[str, int]:
    """Infer the image size, and for Swin the window size, from the position tables."""
    if family == 'InLineCSwin':
        return {}
    if family == 'InLineSwin':
        windows = [
            (tensor.shape[-1] + 1) // 2
            for name, tensor in converted.items()
            if name.endswith('relative_position_bias.weight')
        ]
        return dict(img_size=32 * windows[-1], window_size=max(windows)) if windows else {}
    table = shape(converted, 'backbone.stages.0.pos_embed.weight', 4)
    return dict(img_size=table[-1] * (16 if family == 'InLineDeiT' else 4))


if __name__ == '__main__':
    run(__doc__, ('model', 'state_dict'), 'state_dict_ema', convert)

"""Count the parameters and multiply-adds of a config's model."""

import argparse
from functools import partial

import torch
from mmengine.config import Config
from mmengine.structures import BaseDataElement

from soft_mm.analysis.complexity import build_model
from soft_mm.analysis.flops import count_executed, count_multiply_adds
from soft_mm.utils import add_cfg_options

SHAPES = {'mmdet': (800, 1344), 'mmseg': (512, 512), 'mmpretrain': (224, 224)}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--shape',
        type=int,
        nargs=2,
        metavar=('H', 'W'),
        help='image size in pixels (default: 224 224 for classifiers, 800 1344 for detectors, '
        '512 512 for segmentors)',
    )
    add_cfg_options(parser)
    args = parser.parse_args()
    if args.shape and min(args.shape) < 1:
        parser.error(f'--shape must be two integers of at least 1 pixel, got {args.shape}')
    return args


def main() -> None:
    args = parse_args()
    cfg = Config.fromfile(args.config)
    cfg.merge_from_dict(args.cfg_options)
    model = build_model(cfg)
    shape = tuple(args.shape or SHAPES[cfg.default_scope])
    if cfg.default_scope == 'mmdet':  # two-stage detectors clip proposals to these sizes
        sample = BaseDataElement(
            metainfo=dict(
                img_shape=shape,
                ori_shape=shape,
                pad_shape=shape,
                batch_input_shape=shape,
                scale_factor=(1.0, 1.0),
            )
        )
        model.forward = partial(model.forward, data_samples=[sample])
    image = torch.randn(1, 3, *shape)
    counts = count_multiply_adds(model, image)
    print(f'{args.config}, {shape[0]}×{shape[1]}')
    print(f'parameters      {sum(p.numel() for p in model.parameters()) / 1e6:10.2f} M')
    print(f'multiply-adds   {sum(counts.values()) / 1e9:10.2f} G')
    for operator, count in counts.most_common():
        print(f'  {operator:30} {count / 1e9:10.3f} G')
    print(f'executed        {count_executed(model, image) / 1e9:10.2f} G  (without norms)')


if __name__ == '__main__':
    main()

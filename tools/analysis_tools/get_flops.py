"""Count the parameters and multiply-adds of a config's model."""

import argparse

import torch
from mmengine.config import Config

from soft_mm.analysis.complexity import build_model, image_size
from soft_mm.analysis.flops import count_executed, count_multiply_adds
from soft_mm.utils import add_cfg_options


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--shape',
        type=int,
        nargs=2,
        metavar=('H', 'W'),
        help="image size in pixels (default: the config's for classifiers, 800 1280 for detectors, "
        '512 2048 for segmentors)',
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
    model = build_model(cfg).to('meta')
    shape = tuple(args.shape or image_size(cfg))
    image = torch.empty(1, 3, *shape, device='meta')
    counts = count_multiply_adds(model, image)
    print(f'{args.config}, {shape[0]}×{shape[1]}')
    print(f'parameters      {sum(p.numel() for p in model.parameters()) / 1e6:10.2f} M')
    print(f'multiply-adds   {sum(counts.values()) / 1e9:10.2f} G')
    for operator, count in counts.most_common():
        print(f'  {operator:30} {count / 1e9:10.3f} G')
    print(f'executed        {count_executed(model, image) / 1e9:10.2f} G  (without norms)')


if __name__ == '__main__':
    main()

"""Train the model of a config. For several GPUs use tools/dist_train.sh."""

import argparse
from importlib.util import find_spec
from pathlib import Path

from mmengine.config import Config

from soft_mm.engine import build_runner, process_group
from soft_mm.fileio import last_checkpoint, set_checkpoint_reader
from soft_mm.utils import add_cfg_options, add_trust_pickle


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--work-dir', help='folder for logs and checkpoints (default: work_dirs/CONFIG_NAME)'
    )
    parser.add_argument(
        '--amp',
        nargs='?',
        const='bfloat16',
        choices=['bfloat16', 'float16'],
        help='train in mixed precision: bfloat16, the default, or float16 with loss scaling',
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help="multiply the learning rate by images per step / the config's base_batch_size",
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='resume from CHECKPOINT, or without a value from the last complete one in the work dir',
    )
    add_trust_pickle(parser)
    parser.add_argument(
        '--tensorboard',
        action='store_true',
        help='also write the log for TensorBoard',
    )
    add_cfg_options(parser)
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='launcher of a distributed run (default: none)',
    )
    return parser.parse_args()


def load_config(args: argparse.Namespace) -> Config:
    cfg = Config.fromfile(args.config)
    cfg.merge_from_dict(args.cfg_options)
    cfg.launcher = args.launcher
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or f'work_dirs/{Path(args.config).stem}'
    if args.amp:
        cfg.optim_wrapper.update(
            type='AmpOptimWrapper',
            dtype=args.amp,
            loss_scale='dynamic' if args.amp == 'float16' else dict(enabled=False),
        )
    if args.tensorboard:
        if find_spec('tensorboard') is None:
            raise SystemExit('--tensorboard needs the package tensorboard: pip install tensorboard')
        cfg.visualizer.vis_backends.append(dict(type='mmengine.TensorboardVisBackend'))
    if args.auto_scale_lr:
        if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
            raise SystemExit(f'--auto-scale-lr: {args.config} has no auto_scale_lr.base_batch_size')
        cfg.auto_scale_lr.enable = True
    if args.resume:
        checkpoint = last_checkpoint(Path(cfg.work_dir)) if args.resume == 'auto' else args.resume
        if checkpoint:
            cfg.resume = True
            cfg.load_from = str(checkpoint)
        else:
            print(f'--resume: {cfg.work_dir} has no checkpoint; training starts from scratch')
    return cfg


def main() -> None:
    args = parse_args()
    cfg = load_config(args)
    set_checkpoint_reader(args.trust_pickle)
    with process_group(cfg):
        build_runner(cfg).train()


if __name__ == '__main__':
    main()

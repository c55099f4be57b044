"""Evaluate the model of a config. For several GPUs use tools/dist_test.sh."""

import argparse
from pathlib import Path

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.fileio import dump

from soft_mm.engine import build_runner, process_group
from soft_mm.fileio import set_checkpoint_reader
from soft_mm.fileio.atomic import ATOMIC
from soft_mm.utils import add_cfg_options, add_trust_pickle

# Options that make each toolbox's visualization hook draw every image into a folder.
DRAW = {
    'DetVisualizationHook': lambda folder: dict(draw=True, test_out_dir=folder),
    'SegVisualizationHook': lambda folder: dict(draw=True),  # the folder is set on the visualizer
    'VisualizationHook': lambda folder: dict(enable=True, interval=1, out_dir=folder),
}


def result_file(name: str) -> Path:
    path = Path(name)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f'{name!r}: there is no folder {path.parent}')
    if path.suffix not in ('.json', '.pkl'):
        raise argparse.ArgumentTypeError(
            f'{name!r} must end in .json (metrics) or .pkl (predictions)'
        )
    return path


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    add_trust_pickle(parser)
    parser.add_argument('--work-dir', help='folder for logs (default: work_dirs/CONFIG_NAME)')
    parser.add_argument(
        '--out',
        type=result_file,
        metavar='FILE',
        help='write the metrics (.json) or the predictions (.pkl) to FILE',
    )
    parser.add_argument('--show-dir', type=Path, help='folder to draw the predictions into')
    add_cfg_options(parser)
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='launcher of a distributed run (default: none)',
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    cfg = Config.fromfile(args.config)
    cfg.merge_from_dict(args.cfg_options)
    cfg.launcher = args.launcher
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or f'work_dirs/{Path(args.config).stem}'
    cfg.load_from = args.checkpoint
    if args.show_dir:
        # The hooks resolve relative paths against the work dir.
        folder = str(args.show_dir.resolve())
        hook = cfg.default_hooks.visualization
        hook.update(DRAW[hook.type](folder))
        if hook.type == 'SegVisualizationHook':
            cfg.visualizer.save_dir = folder
    if args.out and args.out.suffix == '.pkl':
        predictions = args.out.with_name(f'.{args.out.stem}.part.pkl')  # renamed once complete
        # mmdet's DumpDetResults encodes masks as RLE.
        dump_type = 'DumpDetResults' if cfg.default_scope == 'mmdet' else 'DumpResults'
        evaluators = cfg.test_evaluator
        cfg.test_evaluator = [
            *(evaluators if isinstance(evaluators, list) else [evaluators]),
            dict(type=dump_type, out_file_path=str(predictions)),
        ]

    set_checkpoint_reader(args.trust_pickle)
    with process_group(cfg):
        metrics = build_runner(cfg).test()
        if not is_main_process():
            return
    if args.out and args.out.suffix == '.json':
        result = dict(config=args.config, checkpoint=args.checkpoint, metrics=metrics)
        dump(result, args.out, backend_args=ATOMIC)
    elif args.out:
        predictions.replace(args.out)
    for name, value in metrics.items():
        print(f'{name}: {value}')
    for kind, path in (('results', args.out), ('pictures', args.show_dir)):
        if path:
            print(f'{kind}: {path}')


if __name__ == '__main__':
    main()

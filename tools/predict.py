"""Draw what a model predicts on images, videos or a webcam, and write it as JSON."""

import argparse

import torch
from mmengine.config import Config
from mmengine.device import get_device

from soft_mm.engine.predict_inputs import add_inputs_and_outputs, predict_inputs, silence_toolboxes
from soft_mm.engine.predictor import Predictor
from soft_mm.fileio import set_checkpoint_reader
from soft_mm.utils import add_cfg_options, add_quiet, add_trust_pickle


def device(name: str) -> str:
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # which one depends on PyTorch's build
        message = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(f'{name!r} cannot be used: {message}') from None
    return name


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'must be an integer >= 1, got {text!r}')
    return int(text)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    add_inputs_and_outputs(parser)
    parser.add_argument(
        '--batch-size',
        type=positive,
        default=1,
        metavar='N',
        help='number of images in a batch (default: 1); detectors and segmenters get images of one '
        'size that follow each other',
    )
    parser.add_argument(
        '--device',
        type=device,
        default=get_device(),
        help='device of the model, such as cpu or cuda:1 (default: %(default)s)',
    )
    add_trust_pickle(parser)
    add_cfg_options(parser)
    add_quiet(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    silence_toolboxes()
    try:
        cfg = Config.fromfile(args.config)
        cfg.merge_from_dict(args.cfg_options)
        set_checkpoint_reader(args.trust_pickle)
        predictor = Predictor(cfg, args.checkpoint, args.device, args.score_thr)
        predict_inputs(predictor, args.inputs, args.out, args.batch_size, args.quiet)
    except (ValueError, OSError) as error:
        raise SystemExit(f'predict.py: error: {error}') from None


if __name__ == '__main__':
    main()

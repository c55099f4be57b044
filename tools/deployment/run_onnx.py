"""Predict with an exported network on images, videos or a webcam: predict.py with an ONNX file."""

import argparse

from mmengine.config import Config

from soft_mm.deployment.predictor import OnnxPredictor
from soft_mm.deployment.runtimes import RUNTIMES
from soft_mm.engine.predict_inputs import add_inputs_and_outputs, predict_inputs, silence_toolboxes
from soft_mm.utils import add_cfg_options, add_quiet


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file that the model was exported with')
    parser.add_argument('model', help='file of export_onnx.py')
    add_inputs_and_outputs(parser)
    parser.add_argument(
        '--runtime',
        choices=RUNTIMES,
        default='onnxruntime',
        help='what runs the model, on the CPU (default: %(default)s)',
    )
    add_cfg_options(parser)
    add_quiet(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    silence_toolboxes()
    try:
        cfg = Config.fromfile(args.config)
        cfg.merge_from_dict(args.cfg_options)
        predictor = OnnxPredictor(cfg, args.model, args.runtime, args.score_thr)
        predict_inputs(predictor, args.inputs, args.out, quiet=args.quiet)
    except (ValueError, OSError) as error:
        raise SystemExit(f'run_onnx.py: error: {error}') from None


if __name__ == '__main__':
    main()

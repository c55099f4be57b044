"""Options that several tools have."""

import argparse

from mmengine.config import DictAction


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--cfg-options``."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        metavar='KEY=VALUE',
        help='override settings of the config',
    )


def add_trust_pickle(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--trust-pickle``."""
    parser.add_argument(
        '--trust-pickle',
        action='store_true',
        help='allow checkpoints to run code when they are loaded; only for files you trust',
    )

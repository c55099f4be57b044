"""Progress bars of the command-line tools."""

import argparse

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


def progress(quiet: bool) -> Progress:
    """Progress bars on standard error with completed steps, elapsed and remaining time."""
    return Progress(
        TextColumn('{task.description}'),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn('left:'),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=quiet,
    )


def add_quiet(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--quiet``."""
    parser.add_argument(
        '--quiet',
        action='store_true',
        help='print only results, warnings and errors, no progress bar',
    )

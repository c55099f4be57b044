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
    """Bars on standard error, each with its share done, the time so far and the time left."""
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
    parser.add_argument(
        '--quiet', action='store_true', help='no progress, nothing but results and errors'
    )

"""Options of the soak test, which is collected only with ``--minutes``: it takes too long for test-all."""

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption('--minutes', type=float, help='length of the training, about')
    parser.addoption('--kills', type=int, default=20, help='how often it is killed (default: 20)')
    parser.addoption('--page', type=Path, help='page to write the results into, with their plot')


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    return True if config.getoption('minutes', None) is None else None

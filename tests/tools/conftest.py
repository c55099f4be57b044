import importlib
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope='session')
def tables():
    """tools/analysis_tools/tables.py as a module."""
    folder = str(Path(__file__).parents[2] / 'tools/analysis_tools')
    sys.path.insert(0, folder)
    yield importlib.import_module('tables')
    sys.path.remove(folder)

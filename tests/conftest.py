"""Paths that tests share, and the rule that a skipped test says why."""

import argparse
import subprocess
import sys
from pathlib import Path

import pytest
from mmengine.config import DictAction

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / 'shared'  # golden numbers and sample images, where there are any


@pytest.fixture(scope='session')
def shared():
    """A folder of golden numbers or images beside the checkout; without it the test is skipped."""

    def folder(name: str) -> Path:
        if not (SHARED / name).is_dir():
            pytest.skip(f'there is no folder shared/{name} beside the checkout')
        return SHARED / name

    return folder


@pytest.fixture(scope='session')
def golden(shared) -> Path:
    return shared('golden')


@pytest.fixture(scope='session')
def run_tool():
    """Run a command of tools/ in a process of its own, from the root of the checkout."""

    def run(script: str, *args, check: bool = True) -> subprocess.CompletedProcess:
        command = [sys.executable, f'tools/{script}', *map(str, args)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        if check:
            assert done.returncode == 0, f'{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}'
        return done

    return run


@pytest.fixture(scope='session')
def parse_options():
    """What ``--cfg-options`` makes of its words, as a dict for ``Config.merge_from_dict``."""

    def parse(words: list[str]) -> dict:
        parser = argparse.ArgumentParser()
        parser.add_argument('--cfg-options', nargs='+', action=DictAction)
        return parser.parse_args(['--cfg-options', *words]).cfg_options

    return parse


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.skipped and report.longrepr[2] in ('Skipped', 'Skipped: unconditional skip'):
        report.outcome = 'failed'
        report.longrepr = f'{item.nodeid} is skipped without a reason'
    return report

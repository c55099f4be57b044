import functools
import importlib.util
import json
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='session')
def load_module():
    """Import a script by its path."""

    def load(path: Path) -> ModuleType:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        # Where dataclasses look for their annotations.
        module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope='session')
def tables(load_module):
    """tools/analysis_tools/tables.py as a module."""
    return load_module(ROOT / 'tools/analysis_tools/tables.py')


@pytest.fixture(scope='session')
def metafiles(load_module):
    """tools/analysis_tools/metafiles.py as a module."""
    return load_module(ROOT / 'tools/analysis_tools/metafiles.py')


@pytest.fixture(scope='session')
def fill(load_module, golden):
    """The golden numbers' fill.py as a module."""
    return load_module(golden / 'fill.py')


@pytest.fixture(scope='session')
def authors_state(golden, fill):
    """A state dict with the authors' names, by the name of its golden file."""

    def state(name: str) -> dict:
        shapes = json.loads((golden / f'{name}.json').read_text())['state_dict']
        return {key: fill.fill(key, shape) for key, shape in shapes.items()}

    return state


@pytest.fixture(scope='session')
def fork(tmp_path_factory):
    """Run a command of tools/ in a process that is forked from one with everything imported.

    Importing the three toolboxes takes most of the time of a short command. A fork server imports
    them once a session; each command then runs in a child of it, with the environment, the working
    directory and the ``sys.path`` that it would have in an interpreter of its own.
    """
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(
        [
            *(
                f'{toolbox}.{part}'
                for toolbox in ('mmdet', 'mmpretrain', 'mmseg')
                for part in ('models', 'datasets', 'evaluation', 'visualization')
            ),
            'soft_mm.datasets',
            'soft_mm.engine',
        ]
    )
    folder = tmp_path_factory.mktemp('fork')

    def run(script: str, *args, before: str = '', merged: bool) -> subprocess.CompletedProcess:
        command = [f'tools/{script}', *map(str, args)]
        stdout, stderr = folder / 'stdout', folder / 'stderr'
        for log in stdout, stderr:
            log.write_text('')
        (folder / 'run.py').write_text(f"""
import os, runpy, sys
os.dup2(os.open({str(stdout)!r}, os.O_WRONLY), 1)
os.dup2({'1' if merged else f'os.open({str(stderr)!r}, os.O_WRONLY)'}, 2)
os.chdir({str(ROOT)!r})
os.environ.clear()
os.environ.update({dict(os.environ)!r})
sys.argv = {command!r}
sys.path.insert(0, {str((ROOT / command[0]).parent)!r})
{before}
runpy.run_path(sys.argv[0], run_name='__main__')
""")
        process = context.Process(target=runpy.run_path, args=(str(folder / 'run.py'),))
        process.start()
        process.join()
        return subprocess.CompletedProcess(
            command, process.exitcode, stdout.read_text(), stderr.read_text()
        )

    return run


@pytest.fixture(scope='session')
def fork_tool(fork):
    """Run a command of tools/ in a forked process; its stdout has what goes to stderr as well.

    ``before`` is Python code that the process executes first.
    """
    return functools.partial(fork, merged=True)


@pytest.fixture(scope='session')
def run_tool(fork):
    """Run a command of tools/ and, unless ``check`` is false, assert that it succeeds.

    The process is forked unless it has to be a ``fresh`` interpreter, as it has where the command
    reads the environment while it imports, or where the test is about what the command imports.
    """

    def run(
        script: str, *args, check: bool = True, fresh: bool = False
    ) -> subprocess.CompletedProcess:
        if fresh:
            command = [sys.executable, f'tools/{script}', *map(str, args)]
            done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        else:
            done = fork(script, *args, merged=False)
        if check:
            output = f'{done.args}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}'
            assert done.returncode == 0, output
        return done

    return run


@pytest.fixture(scope='session')
def free_port():
    """Find a port of this machine on which nothing listens."""

    def find() -> str:
        with socket.socket() as server:
            server.bind(('127.0.0.1', 0))
            return str(server.getsockname()[1])

    return find


@pytest.fixture(scope='session')
def small_digits(tmp_path_factory):
    """A config and options that train a small classifier for 4 epochs of 6 steps on 42 digits."""
    cv2 = pytest.importorskip('cv2')
    from sklearn.datasets import load_digits

    folder = tmp_path_factory.mktemp('digits')
    for split in ('train', 'val'):
        for label in range(10):  # some classes have no validation image
            (folder / split / str(label)).mkdir(parents=True)
    scans = load_digits()
    for i, (scan, label) in enumerate(zip(scans.images[:50], scans.target)):
        file = folder / ('train' if i < 42 else 'val') / str(label) / f'{i}.png'
        assert cv2.imwrite(str(file), (scan * 15).astype('uint8'))
    return 'tests/tools/small_digits.py', [
        '--cfg-options',
        *(f'{loader}_dataloader.dataset.data_root={folder}' for loader in ('train', 'val', 'test')),
    ]

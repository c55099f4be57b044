"""Profiles of hypothesis: few examples and always the same in the suite, others in each ``make fuzz``.

Fixtures let a test watch that reading a file has no effect outside of the process.
"""

import os
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

COMMON = dict(deadline=None, suppress_health_check=list(HealthCheck))
settings.register_profile('suite', **COMMON, derandomize=True, database=None, max_examples=10)
settings.register_profile('fuzz', **COMMON, print_blob=True, max_examples=100)
settings.load_profile('suite')

# Audit events of running code, of deleting and of writing; reading and listing are not among them.
EFFECTS = (
    'os.system',
    'os.exec',
    'os.fork',
    'os.posix_spawn',
    'os.mkdir',
    'os.remove',
    'os.rename',
    'os.rmdir',
    'pickle.find_class',  # torch.load with weights_only has an unpickler of its own
    'shutil.',
    'socket.',
    'subprocess.',
    'tempfile.',
    'urllib.',
)
MEMORY = 2**29  # bytes that reading a file of some KiB may take


@pytest.fixture(scope='session')
def effects() -> list[str]:
    """The effects so far that code in this process has had outside of it."""
    seen = []

    def watch(event: str, args: tuple) -> None:
        writes = event == 'open' and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if event.startswith(EFFECTS) or writes and not str(args[0]).endswith('.pyc'):
            seen.append(f'{event} {args}')

    sys.addaudithook(watch)  # which cannot be removed, but only appends
    return seen


@pytest.fixture(scope='session')
def without_effects(effects) -> Callable[[], AbstractContextManager]:
    """A context whose code must neither write, delete nor run anything."""

    @contextmanager
    def watch() -> Iterator[None]:
        before = len(effects)
        yield
        assert effects[before:] == []

    return watch


@pytest.fixture(scope='session')
def little_memory() -> Callable[[], AbstractContextManager]:
    """A context that must not take much memory, where larger allocations than that fail at once."""

    @contextmanager
    def limit() -> Iterator[None]:
        pages = int(Path('/proc/self/statm').read_text().split()[0])
        limits = resource.getrlimit(resource.RLIMIT_AS)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        resource.setrlimit(
            resource.RLIMIT_AS, (pages * resource.getpagesize() + 4 * MEMORY, limits[1])
        )
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_AS, limits)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown * 1024 < MEMORY

    return limit

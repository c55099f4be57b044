"""Shared parts of the benchmarks: time, peak memory, the machine and the report."""

import argparse
import ctypes
import json
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch

from ..fileio import atomic_write


def milliseconds(step: Callable, device: str) -> float:
    """Time one call of ``step`` in milliseconds, until the device has finished."""
    if device == 'cuda':
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if device == 'cuda':
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start)


def median_ratio(times: list[float], others: list[float]) -> float:
    """Median of the ratios of what was measured in the same turn."""
    return statistics.median(a / b for a, b in zip(times, others))


def peak_memory(step: Callable, device: str) -> float:
    """Peak memory of one call of ``step``, in MiB above what was allocated before it."""
    if device == 'cuda':
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    ctypes.CDLL(None).malloc_trim(0)  # return free memory to the system
    before = _status('VmRSS')
    Path('/proc/self/clear_refs').write_text('5')  # reset VmHWM, the peak of VmRSS
    step()
    return _status('VmHWM') - before


def _status(name: str) -> float:
    """A field of the process status, in MiB."""
    text = Path('/proc/self/status').read_text()
    return int(re.search(rf'{name}:\s+(\d+) kB', text)[1]) / 2**10


def machine(device: str) -> str:
    """Describe the device and the PyTorch version."""
    if device == 'cuda':
        query = ['nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader']
        driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
        name = f'{torch.cuda.get_device_name()}, driver {driver}, CUDA {torch.version.cuda}'
    else:
        text = Path('/proc/cpuinfo').read_text()
        model = re.search(r'model name\s*:\s*(.*)', text)
        name = f'{model[1] if model else platform.machine()}, {torch.get_num_threads()} threads'
    return f'{name}; PyTorch {torch.__version__}'


def report(conditions: str, table: str, results: list, out: Path | None) -> None:
    """Print the table; with ``out``, write it to ``out``.md and all results to ``out``.json."""
    text = f'{conditions}\n\n{table}\n'
    print(text)
    if out:
        data = dict(machine=conditions, results=[vars(result) for result in results])
        for suffix, content in (('.md', text), ('.json', json.dumps(data, indent=1))):
            with atomic_write(out.with_suffix(suffix)) as temporary:
                temporary.write_text(content)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--device``."""
    parser.add_argument(
        '--device',
        choices=['cpu', 'cuda'],
        default='cuda' if torch.cuda.is_available() else 'cpu',
        help='device to measure on (default: cuda if there is a GPU, else cpu)',
    )


def add_out(parser: argparse.ArgumentParser, plot: bool) -> None:
    """Add the option ``--out``."""
    files = 'FILE.md, FILE.json and FILE.png' if plot else 'FILE.md and FILE.json'
    parser.add_argument('--out', type=Path, metavar='FILE', help=f'also write {files}')


def size_of(text: str) -> tuple[int, int]:
    """Parse an argument such as ``800x1344`` into height and width."""
    match = re.fullmatch(r'(\d+)x(\d+)', text)
    if not match or not all(map(int, match.groups())):
        raise argparse.ArgumentTypeError(f'{text!r} is not of the form 800x1344')
    return int(match[1]), int(match[2])

"""A training that is killed again and again ends with the same bits, and memory stays flat.

One training runs undisturbed beside another one that ``kill -9`` ends, with its workers, at random times,
and that ``--resume`` continues. Then a server predicts with the trained weights.
"""

import itertools
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from matplotlib.figure import Figure

from soft_mm.analysis.benchmark import machine
from soft_mm.fileio import atomic_write

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
CONFIG = 'tests/soak/hard_shapes.py'
PER_MINUTE = 270  # iterations of a training on an idle core with evaluations, about
EVALUATE = 90  # iterations between evaluations
THREADS, IMAGES, EVERY = 4, 2000, 40  # of the server; which of its predictions one thread repeats
NOISE = 64  # MiB that the resident set may grow without a leak: a heap of glibc (HEAP_MAX_SIZE)
CAPTION = 'Resident set and open file handles of the undisturbed training and of the server'
TABLE = re.compile(r'(<!-- table: soak -->\n).*?(\n<!-- end of table -->)', re.DOTALL)


@dataclass
class Usage:
    """What a process and its children use, sampled every second.

    Attributes:
        minutes (list[float]): times of the samples.
        resident (list[float]): sums of the resident sets in MiB.
        handles (list[int]): numbers of open file handles.
    """

    minutes: list[float] = field(default_factory=list)
    resident: list[float] = field(default_factory=list)
    handles: list[int] = field(default_factory=list)

    def watch(self, process: subprocess.Popen) -> None:
        """Take samples until the process ends."""
        root, start = psutil.Process(process.pid), time.monotonic()
        while process.poll() is None:
            try:
                tree = [root, *root.children(recursive=True)]
                resident = sum(member.memory_info().rss for member in tree) / 2**20
                handles = sum(member.num_fds() for member in tree)
            except psutil.Error:  # one of them has just ended
                continue
            self.minutes.append((time.monotonic() - start) / 60)
            self.resident.append(resident)
            self.handles.append(handles)
            time.sleep(1)

    def medians(self, name: str) -> tuple[float, float]:
        """Medians of the second and of the last third; the first third is for warming up."""
        values = getattr(self, name)
        third = len(values) // 3
        return statistics.median(values[third:-third]), statistics.median(values[-third:])

    def check_flat(self) -> None:
        before, after = self.medians('resident')
        assert after <= before + NOISE
        before, after = self.medians('handles')
        assert after <= before


def start(command: list, log: Path, **environment: str) -> subprocess.Popen:
    """Start a script with its arguments, on one thread, in a process group of its own."""
    with log.open('a') as output:
        return subprocess.Popen(
            [sys.executable, *map(str, command)],
            cwd=ROOT,
            env=dict(os.environ, OMP_NUM_THREADS='1', **environment),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


class Training:
    """A training that can be killed and started again.

    Args:
        folder: its work dir. Its output and temporary files are beside it.
        images: folder of the dataset.
        iterations: its length.
    """

    def __init__(self, folder: Path, images: Path, iterations: int) -> None:
        self.folder, self.images, self.log = folder, images, folder.with_suffix('.log')
        self.last = folder / f'iter_{iterations}.pth'
        self.temporary = folder.with_suffix('.tmp')  # of Python, which cannot tidy up when killed
        self.temporary.mkdir()
        annotations = images / 'annotations/instances_val.json'
        self.command = [
            *('tools/train.py', CONFIG, '--work-dir', folder, '--resume', '--cfg-options'),
            *(
                f'{name}_dataloader.dataset.data_root={images}/'
                for name in ('train', 'val', 'test')
            ),
            *(f'{name}_evaluator.ann_file={annotations}' for name in ('val', 'test')),
            f'train_cfg.max_iters={iterations}',
            f'train_cfg.val_interval={EVALUATE}',
        ]

    def start(self) -> None:
        self.process = start(self.command, self.log, TMPDIR=str(self.temporary))

    def iteration(self) -> int:
        """The iteration of the last checkpoint, or 0."""
        return max((int(path.stem[5:]) for path in self.folder.glob('iter_*.pth')), default=0)

    def check_running(self) -> None:
        assert self.process.poll() is None, self.log.read_text()[-3000:]

    def wait_until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self.check_running()
            time.sleep(0.01)

    def kill(self) -> None:
        self.check_running()
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def finish(self) -> None:
        assert self.process.wait() == 0, self.log.read_text()[-3000:]


# What kills fall in: whether it begins, once there is the checkpoint that a kill waits for, and within how
# many seconds the kill follows. Start-up waits for no checkpoint.
MOMENTS = {
    'training': (lambda training: True, 20),
    'writing a checkpoint': (lambda training: any(training.folder.glob('.*.part')), 0),
    'evaluation': (lambda training: training.iteration() % EVALUATE == 0, 2),
    'start-up': (None, 20),
}


def run_with_kills(training: Training, kills: int, iterations: int) -> None:
    """Run a training that is killed at random times, in each of the moments in turn."""
    chance = random.Random(0)
    places = sorted(chance.sample(range(iterations - 2 * EVALUATE), kills))
    for place, (begins, seconds) in zip(places, itertools.cycle(MOMENTS.values())):
        training.start()
        if begins:
            place = max(place, training.iteration() + 1)
            training.wait_until(lambda: training.iteration() >= place and begins(training))  # noqa: B023
        time.sleep(chance.uniform(0, seconds))
        training.kill()
    training.start()
    training.finish()


@dataclass
class Report:
    """Table and plot of a page, in which they stand between marks.

    Attributes:
        rows (list[list[str]]): cells of the table.
        usages (dict[str, Usage]): what is plotted, by title.
    """

    rows: list[list[str]] = field(default_factory=list)
    usages: dict[str, Usage] = field(default_factory=dict)

    def add(self, title: str, length: str, usage: Usage) -> None:
        memory = ('{:.0f}, {:.0f}'.format(*usage.medians(name)) for name in ('resident', 'handles'))
        self.rows.append([title, length, f'{usage.minutes[-1]:.0f}', *memory])
        self.usages[title] = usage

    def write(self, page: Path) -> None:
        head = ['process', 'length', 'minutes', 'resident set (MiB)', 'open file handles']
        lines = [f'| {" | ".join(cells)} |' for cells in (head, ['---'] * len(head), *self.rows)]
        picture = page.with_suffix('.png')
        part = '\n'.join([machine('cpu'), '', *lines, '', f'![{CAPTION}]({picture.name})'])
        text = TABLE.sub(lambda match: f'{match[1]}\n{part}\n{match[2]}', page.read_text())
        with atomic_write(page) as temporary:
            temporary.write_text(text)
        with atomic_write(picture) as temporary:
            self.plot().savefig(temporary, format='png', dpi=100)

    def plot(self) -> Figure:
        drawing = Figure(figsize=(10, 5), layout='constrained')
        columns = drawing.subplots(2, len(self.usages), sharex='col').T
        for (resident, handles), (title, usage) in zip(columns, self.usages.items()):
            resident.plot(usage.minutes, usage.resident, linewidth=0.7)
            resident.set(title=title, ylabel='resident set (MiB)', ylim=(0, None))
            handles.plot(usage.minutes, usage.handles, linewidth=0.7)
            handles.set(xlabel='minutes', ylabel='open file handles', ylim=(0, None))
        return drawing


@pytest.fixture(scope='module')
def report(pytestconfig) -> Report:
    """Written into the page at the end, if everything has run."""
    report = Report()
    yield report
    if (page := pytestconfig.getoption('page')) and len(report.usages) == 2:
        report.write(page)


@pytest.fixture(scope='module')
def trainings(pytestconfig, tmp_path_factory, report) -> tuple[Training, Training, Usage]:
    """An undisturbed training, one that was killed, and what the first used."""
    folder = tmp_path_factory.mktemp('soak')
    images = folder / 'hard-shapes'
    make = ['tools/misc/make_shapes.py', images, '--hard', '--train', 200, '--val', 16]
    assert start(make, folder / 'images.log').wait() == 0
    kills = pytestconfig.getoption('kills')
    iterations = int(PER_MINUTE * pytestconfig.getoption('minutes'))
    whole, killed = (Training(folder / name, images, iterations) for name in ('whole', 'killed'))
    usage, begin = Usage(), time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        whole.start()
        watching = pool.submit(usage.watch, whole.process)
        try:
            run_with_kills(killed, kills, iterations)
            minutes = (time.monotonic() - begin) / 60
            whole.finish()
        finally:
            for training in whole, killed:
                if training.process.poll() is None:
                    training.kill()
    watching.result()
    report.add('training', f'{iterations} iterations', usage)
    report.rows.append(
        [f'training, killed {kills} times', f'{iterations} iterations', f'{minutes:.0f}', '', '']
    )
    return whole, killed, usage


def test_killed_training_ends_bit_equal(trainings, training_state):
    whole, killed, _ = trainings
    assert training_state(killed.last) == training_state(whole.last)


def test_kills_leave_no_files(trainings):
    files = [
        {path.name for path in run.folder.iterdir() if path.is_file()} for run in trainings[:2]
    ]
    assert files[0] == files[1]
    assert not [name for name in files[1] if name.startswith('.')]


def test_training_is_flat(trainings):
    trainings[2].check_flat()


def serve(training: Training, threads: int, step: int, usage: Usage) -> dict:
    """Predict every ``step``-th image with the weights of a training, and return every 40th prediction."""
    out = training.folder.with_name(f'predictions-{threads}.json')
    config = training.folder / Path(CONFIG).name
    command = ['tests/soak/server.py', config, training.last, training.images / 'val', out]
    options = ['--threads', threads, '--images', IMAGES, '--step', step, '--keep', EVERY]
    log = out.with_suffix('.log')
    # docs/soak.md explains both: the first is glibc's default, but fixed.
    limits = dict(MALLOC_MMAP_THRESHOLD_='131072', LRU_CACHE_CAPACITY='1')
    process = start([*command, *options], log, **limits)
    usage.watch(process)
    assert process.returncode == 0, log.read_text()[-3000:]
    return json.loads(out.read_text())


@pytest.fixture(scope='module')
def server(trainings, report) -> tuple[dict, Usage]:
    """Every 40th prediction of a server with threads, and what it used."""
    usage = Usage()
    predictions = serve(trainings[0], THREADS, 1, usage)
    report.add('server', f'{IMAGES} images in {THREADS} threads', usage)
    return predictions, usage


def test_server_is_flat(server):
    server[1].check_flat()


def test_threads_predict_what_one_does(trainings, server):
    alone = serve(trainings[0], 1, EVERY, Usage())
    assert len(alone) == IMAGES // EVERY
    assert alone == server[0]
    assert any(prediction['scores'] for prediction in alone.values())

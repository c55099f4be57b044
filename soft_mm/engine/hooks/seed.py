"""What is random in an iteration depends on the run's seed, the process and the iteration alone.

So a resumed run goes on as if it had never stopped, on any number of processes and whatever was
validated in between, and no state of a random number generator has to be saved.
"""

from collections.abc import Iterator
from functools import partial

import numpy as np
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import Runner, set_random_seed
from torch.utils.data import Dataset, Sampler

from ...registry import HOOKS

STEP, SAMPLE = range(2)


@HOOKS.register_module()
class SeedHook(Hook):
    """Seeds every step, and the loading of every sample, in whichever process that happens."""

    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        loader = runner.train_dataloader
        sampler = loader.batch_sampler.sampler
        sampler.seed = runner.seed  # a resumed run's, which was not known when this was built
        loader.batch_sampler.sampler = _Draws(sampler, runner, loader.batch_sampler.batch_size)
        loader.dataset.__getitems__ = partial(_load, loader.dataset)  # the data loader's to call

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: object = None) -> None:
        set_random_seed(_seed(runner, STEP, runner.iter))


class _Draw(int):
    """The index of a sample, which knows the seed of what is random in loading it."""

    seed: int


class _Draws:
    """A sampler's indices as draws, counted on from the samples of the iterations before."""

    def __init__(self, sampler: Sampler, runner: Runner, batch_size: int) -> None:
        self.sampler = sampler
        self.runner = runner
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[_Draw]:
        for i, index in enumerate(self.sampler, self.runner.iter * self.batch_size):
            draw = _Draw(index)
            draw.seed = _seed(self.runner, SAMPLE, i)
            yield draw

    def __len__(self) -> int:
        return len(self.sampler)

    def __getattr__(self, name: str) -> object:
        return getattr(self.sampler, name)  # batch samplers ask for the dataset, hooks set epochs


def _seed(runner: Runner, kind: int, number: int) -> int:
    key = np.random.SeedSequence((runner.seed, get_rank(), kind, number))
    return int(key.generate_state(1)[0])


def _load(dataset: Dataset, draws: list[_Draw]) -> list:
    samples = []
    for draw in draws:
        set_random_seed(draw.seed)
        samples.append(dataset[int(draw)])
    return samples

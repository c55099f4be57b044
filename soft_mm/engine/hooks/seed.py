"""Randomness that depends only on the run's seed, the rank and the iteration.

A resumed run therefore continues exactly as if it had never stopped, in distributed runs too and
regardless of validation in between, and checkpoints need no random number generator state.
"""

from collections.abc import Iterator
from functools import partial

import numpy as np
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop, Runner, set_random_seed
from torch.utils.data import Dataset, Sampler

from ...registry import HOOKS

STEP, SAMPLE = range(2)  # what a seed is for


@HOOKS.register_module()
class SeedHook(Hook):
    """Seed every training step, and the loading of every sample in whichever worker loads it."""

    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        loader = runner.train_dataloader
        sampler = loader.batch_sampler.sampler
        # A resumed run takes its seed from the checkpoint, after the sampler was built.
        sampler.seed = runner.seed
        loader.batch_sampler.sampler = _SeededSampler(
            sampler, runner, loader.batch_sampler.batch_size
        )
        # The data loader calls __getitems__, if there is one, with the indices of a batch.
        loader.dataset.__getitems__ = partial(_load_samples, loader.dataset)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: object = None) -> None:
        set_random_seed(_seed(runner, STEP, runner.iter))


class _SeededIndex(int):
    """Index of a sample, with the seed for loading it."""

    seed: int


class _SeededSampler:
    """Wrap a sampler to yield seeded indices, numbered across all iterations of the run."""

    def __init__(self, sampler: Sampler, runner: Runner, batch_size: int) -> None:
        self.sampler = sampler
        self.runner = runner
        self.batch_size = batch_size
        self.number = 0
        if hasattr(sampler, 'skip'):
            self.skip_indices, sampler.skip = sampler.skip, self._skip

    def __iter__(self) -> Iterator[_SeededIndex]:
        # A resumed IterBasedTrainLoop either skips the indices of the iterations before, or draws them again.
        if not isinstance(self.runner.train_loop, IterBasedTrainLoop):
            self.number = self.runner.iter * self.batch_size
        for index in self.sampler:
            seeded = _SeededIndex(index)
            seeded.seed = _seed(self.runner, SAMPLE, self.number)
            self.number += 1
            yield seeded

    def _skip(self, number: int) -> None:
        self.skip_indices(number)
        self.number = number

    def __len__(self) -> int:
        return len(self.sampler)

    def __getattr__(self, name: str) -> object:
        return getattr(self.sampler, name)  # such as dataset and set_epoch


def _seed(runner: Runner, kind: int, number: int) -> int:
    key = np.random.SeedSequence((runner.seed, get_rank(), kind, number))
    return int(key.generate_state(1)[0])


def _load_samples(dataset: Dataset, indices: list[_SeededIndex]) -> list:
    samples = []
    for index in indices:
        set_random_seed(index.seed)
        samples.append(dataset[int(index)])
    return samples

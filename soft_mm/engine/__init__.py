from .hooks import BadNumbersHook, CheckModelHook, CheckpointHook, SeedHook
from .optimizers import LayerDecayConstructor
from .process_group import process_group
from .runner import Runner, build_runner

__all__ = [
    'BadNumbersHook',
    'CheckModelHook',
    'CheckpointHook',
    'LayerDecayConstructor',
    'Runner',
    'SeedHook',
    'build_runner',
    'process_group',
]

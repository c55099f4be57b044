from .bad_numbers import BadNumbersHook
from .check_model import CheckModelHook
from .checkpoint import CheckpointHook
from .seed import SeedHook

__all__ = ['BadNumbersHook', 'CheckModelHook', 'CheckpointHook', 'SeedHook']

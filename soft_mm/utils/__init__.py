from .bad_numbers_hook import BadNumbersHook
from .check_model_hook import CheckModelHook
from .checkpoint_hook import CheckpointHook
from .checkpoints import last_checkpoint, load_checkpoint, set_checkpoint_reader
from .distributed import process_group
from .progress import add_quiet, progress
from .runner import Runner
from .seed_hook import SeedHook
from .whole_files import whole_file

__all__ = [
    'BadNumbersHook',
    'CheckModelHook',
    'CheckpointHook',
    'Runner',
    'SeedHook',
    'add_quiet',
    'last_checkpoint',
    'load_checkpoint',
    'process_group',
    'progress',
    'set_checkpoint_reader',
    'whole_file',
]

from .atomic import atomic_write
from .backbone import load_backbone
from .checkpoints import last_checkpoint, load_checkpoint, set_checkpoint_reader

__all__ = [
    'atomic_write',
    'last_checkpoint',
    'load_backbone',
    'load_checkpoint',
    'set_checkpoint_reader',
]

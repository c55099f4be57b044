from .arguments import add_cfg_options, add_trust_pickle
from .progress import add_quiet, progress

__all__ = ['add_cfg_options', 'add_quiet', 'add_trust_pickle', 'progress']

from .progress import add_quiet, progress

__all__ = ['add_quiet', 'progress']

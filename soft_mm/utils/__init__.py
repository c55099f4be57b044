from .distributed import process_group

__all__ = ['process_group']

from .distributed import join_cpu_processes

__all__ = ['join_cpu_processes']

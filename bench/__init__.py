"""Benchmarks. As in jaxkd's commands freed memory stays with the process, for PyTorch too where it runs beside."""

from jaxkd import allocator

allocator.keep_freed_memory()  # before JAX is imported

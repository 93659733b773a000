"""Policy optimization with power means of the importance ratios, in JAX."""

__version__ = '0.1.0'

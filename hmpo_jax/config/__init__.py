"""Configurations: their keys, rules and files, and what a program takes."""

from hmpo_jax.base import ConfigError as ConfigError
from hmpo_jax.config.keys import default_config as default_config
from hmpo_jax.config.keys import flat as flat
from hmpo_jax.config.keys import lookup as lookup
from hmpo_jax.config.validation import validate as validate

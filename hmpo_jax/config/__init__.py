"""Configurations: their keys, rules and files, and what a program takes."""

from hmpo_jax.config.keys import ConfigError
from hmpo_jax.config.keys import default_config
from hmpo_jax.config.keys import flat
from hmpo_jax.config.keys import lookup
from hmpo_jax.config.keys import validate

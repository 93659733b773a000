"""The QK-clip on grouped attention with biases, by one program a mode."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from hmpo_jax.optim import muon_clip
from tests import attention_layouts as layouts

# Two layers; query heads 0, 1 and 2, 3 share a key head.
LAYOUT = layouts.LAYOUTS['grouped_with_bias']
SHAPE = LAYOUT.blocks.shape
PARAMS = jax.tree.map(jnp.asarray, LAYOUT.params)
ZEROS = jax.tree.map(jnp.zeros_like, PARAMS)
BASE = jax.tree.map(
  jnp.asarray, layouts.normal(jax.tree.map(np.shape, PARAMS), seed=1)
)


def full(value, **layers):
  """[2, 4] statistics: the value, but in layers i given as _i=[4]."""
  stats = np.full(SHAPE, value, np.float32)
  for name, row in layers.items():
    stats[int(name[1:])] = row
  return jnp.asarray(stats)


def transform(tau=100.0, **options):
  """The clip of this layout."""
  return muon_clip.qk_clip(tau, attention=LAYOUT.blocks, **options)


@functools.partial(jax.jit, static_argnames='mode')
def update(updates, state, params, max_logits, tau, alpha, monitor_tau, mode):
  """What the clip makes of updates."""
  tx = transform(tau, alpha=alpha, monitor_tau=monitor_tau, mode=mode)
  return tx.update(updates, state, params, max_logits=max_logits)


def clip(
  max_logits,
  updates=BASE,
  state=None,
  params=PARAMS,
  tau=100.0,
  alpha=0.5,
  monitor_tau=100.0,
  mode='weights',
):
  """Updates and state, by one program a mode."""
  state = transform().init(params) if state is None else state
  return update(
    updates, state, params, max_logits, tau, alpha, monitor_tau, mode
  )

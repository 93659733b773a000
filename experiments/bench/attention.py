"""Attention with an array of all logits against attention block by block.

Two groups for each shape (sequences, tokens, query heads, key heads, head
width): the forward pass, and the forward pass with all gradients. One sequence
in four is left-padded. GFLOP/s count the products of visible logits alone, each
made once: what is above the diagonal, or recomputed, is overhead.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import timing
from hmpo_jax.ops import attention

_PLAIN, _BLOCKWISE = 'plain', 'blockwise'
_FORMS = {_PLAIN: attention.plain, _BLOCKWISE: attention.blockwise}
_MODES = ('forward', 'forward and backward')
# Logits from which on a call is long enough to be timed by itself; of fewer up
# to 16 calls are timed together.
_LONG = 2**22


def measure(options: timing.Options) -> list[timing.Row]:
  """Times both forms on shapes (B, S, H, K, Dh); the plain form always."""
  rows = []
  for shape in options.shapes:
    for mode in _MODES:
      rows += _rows(shape, mode, options)
  return rows


def variants() -> tuple[str, ...]:
  """Names of all that can be chosen."""
  return tuple(_FORMS)


def visible_flops(shape: tuple[int, ...], mode: str) -> int:
  """Operations of the products of visible logits, without padding.

  Forward, a logit takes a product with a key and one with a value, backward
  two more for each.
  """
  batch, length, heads, _, width = shape
  logits = batch * heads * length * (length + 1) // 2
  return (4 if mode == _MODES[0] else 12) * width * logits


def _rows(shape, mode, options):
  batch, length, heads, *_ = shape
  arguments = _arguments(*shape)
  cases = []
  for variant, form in _FORMS.items():
    if variant == _PLAIN or options.wants(variant):
      program = timing.compiled(_program(form, mode), *arguments)
      call = functools.partial(program.call, *arguments)
      cases.append(
        timing.Case(
          variant,
          mode,
          timing.wall_clock(call),
          program,
          visible_flops(shape, mode),
        )
      )
  label = f'{"x".join(map(str, shape))}, {mode}'
  repeats = min(16, max(1, _LONG // (batch * heads * length**2)))
  return options.timed(label, cases, repeats=repeats)


def _arguments(batch, length, heads, key_heads, width):
  """Query, key, value, valid tokens, and the gradient of what is mixed."""
  rng = np.random.default_rng(0)
  of_heads = lambda count: jnp.asarray(
    np.float32(rng.normal(size=(batch, length, count, width)))
  )
  valid = np.ones((batch, length), bool)
  valid[::4, : length // 16] = False
  return (
    of_heads(heads),
    of_heads(key_heads),
    of_heads(key_heads),
    jnp.asarray(valid),
    of_heads(heads),
  )


def _program(form, mode):
  """f(*arguments): the results, and in one mode the three gradients."""

  def forward(query, key, value, valid, _):
    return form(query, key, value, valid)

  def both(query, key, value, valid, of_mixed):
    mixed, pullback, max_logits = jax.vjp(
      lambda *heads: form(*heads, valid), query, key, value, has_aux=True
    )
    return mixed, max_logits, pullback(of_mixed)

  return forward if mode == _MODES[0] else both


SUITE = timing.Suite(
  measure,
  variants,
  shapes=('32x80x4x4x32', '32x256x4x4x32', '32x528x4x4x32', '32x1024x4x4x32'),
  rounds=9,
)

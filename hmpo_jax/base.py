"""Dimension key and the structures that cross modules.

Dimension key (used in shapes everywhere):
  N    prompts of a rollout
  G    responses to one prompt, a group
  B    sequences, N * G, ordered prompt by prompt
  P    prompt tokens, padded on the left
  T    response tokens, padded on the right
  L    all tokens, P + T
  V    vocabulary
  D    model width
  F    width of the feed-forward layer
  H    query heads
  K    key and value heads
  Dh   width of one head
  N_l  layers
  U    optimizer updates of one step

A *step* is one rollout with all its updates, an *update* one optimizer update,
an *episode* one response. Log-ratios and log-probabilities are in nats.
"""

from typing import NamedTuple

import jax

from hmpo_jax.kernels import clips
from hmpo_jax.kernels import exponents

# Nested dicts of arrays: parameters, gradients, updates.
Params = dict
# Flat dict of arrays by stable name: scalars, or [N_l, H] for values per head.
Metrics = dict[str, jax.Array]


class ConfigError(ValueError):
  """A configuration that can't run; the message is one line for the user."""


def random_key(seed) -> jax.Array:
  """[] typed key of a seed, the same whatever JAX_DEFAULT_PRNG_IMPL says.

  Threefry is JAX's default. Under `vmap` rbg draws for all keys from the first,
  so that prompts and tokens would repeat.
  """
  return jax.random.key(seed, impl='threefry2x32')


class Interrupted(Exception):
  """A signal asked for the end; the same command goes on from there."""

  exit_code = 75  # EX_TEMPFAIL


class HParams(NamedTuple):
  """What may differ between runs of one compiled program: traced arrays."""

  loss: dict[str, jax.Array]  # keyword arguments of losses that are scalars
  exponent: exponents.Settings  # how the order of the mean evolves
  tracking: clips.Tracking  # how the clip range follows its targets
  kl_weight: jax.Array  # [] weight of the KL to the reference policy, in J
  reward_kl_weight: jax.Array  # [] the same in the reward
  pays_exact: jax.Array  # [] bool: exact match, else the share of right tokens
  exclude_nonfinite: jax.Array  # [] bool: rewards, else they stop updates
  entropy_weight: jax.Array  # [] weight of the entropy bonus, per token
  temperature: jax.Array  # [] divides the logits in sampler and loss
  mismatch_frac: jax.Array  # [] tokens whose log-probability is told wrong
  mismatch_size: jax.Array  # [] nats by which it is
  learning_rate: jax.Array  # [] of the hidden matrices (AdamW: of all)
  adam_learning_rate: jax.Array  # [] of all else under MuonClip
  adam_weight_decay: jax.Array  # [] of all else under MuonClip
  decay: jax.Array  # [] factor of both learning rates at the end, 1 = none
  decay_steps: jax.Array  # [] steps until then, at least 1
  weight_decay: jax.Array  # [] decoupled, per unit of learning rate
  momentum: jax.Array  # [] Muon's
  qk_learning_rate_scale: jax.Array  # [] on that of query and key kernels
  max_grad_norm: jax.Array  # [] global norm, inf = off
  tau: jax.Array  # [] threshold on the attention logits
  qk_alpha: jax.Array  # [] the queries' share of the QK-clip, from 0 to 1
  monitor_tau: jax.Array  # [] threshold that is counted, whatever is clipped
  mask_truncated: jax.Array  # [] bool: responses without stop are not trained
  permute_advantages: jax.Array  # [] bool: control that must not learn


class Controls(NamedTuple):
  """What evolves beside the parameters, by rules of its own."""

  exponent: exponents.State
  widths: clips.Widths  # of the clip range


class Rollout(NamedTuple):
  """Sampled responses, on the buffers of fixed size that `jit` wants."""

  tokens: jax.Array  # [B, L] int32 prompt, then response, padded both sides
  valid: jax.Array  # [B, L] bool, true on what is not padding
  mask: jax.Array  # [B, T] bool, true on the response including its stop
  logprobs: jax.Array  # [B, T] float32 under the sampler, 0 off the mask
  # [B, T] mass of the tokens that truncated sampling drew from; else None.
  kept_mass: jax.Array | None = None


class Batch(NamedTuple):
  """What one update learns from; leading axis B or a minibatch of it."""

  tokens: jax.Array  # [B, L] int32
  valid: jax.Array  # [B, L] bool
  mask: jax.Array  # [B, T] bool, true on the trained tokens
  old_logprobs: jax.Array  # [B, T] float32 under the policy that sampled
  ref_logprobs: jax.Array  # [B, T] float32 under the KL anchor; 0 without KL
  advantages: jax.Array  # [B] float32
  group: jax.Array  # [B] int32 index of the prompt, below N
  # [] bool: the policy is still the one that sampled, so that every ratio is 1,
  # to the last bit and whatever the compiler makes of two equal passes.
  is_on_policy: jax.Array

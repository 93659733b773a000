"""Metrics of what a step sampled, and of held-out responses."""

import jax
import jax.numpy as jnp

from hmpo_jax import base
from hmpo_jax.ops import reductions
from hmpo_jax.tasks import task as task_lib
from hmpo_jax.training import policy

_NUM_SAMPLES = 4  # responses of an evaluation that can be read


def of_rollout(
  static, rollout: base.Rollout, scores: task_lib.Score
) -> base.Metrics:
  """Rewards, lengths and a digest of the sampled responses.

  Args:
    static: hashable part of the configuration.
    rollout: of the step.
    scores: of its responses; rewards that are not finite are left out.
  """
  length, finite = jnp.sum(rollout.mask, 1), jnp.isfinite(scores.reward)
  return {
    'reward/mean': jnp.mean(scores.reward, where=finite),
    'reward/std': jnp.std(scores.reward, where=finite),
    'reward/exact': jnp.mean(scores.exact),
    **_share('reward/share', scores),
    'rollout/length_mean': jnp.mean(length),
    'rollout/truncated_frac': jnp.mean(is_truncated(static, rollout)),
    'rollout/tokens': jnp.sum(length),
    'rollout/digest': reductions.digest(rollout.tokens, rollout.mask),
  } | _kept_metrics(rollout)


def of_held_out(rollout: base.Rollout, scores: task_lib.Score) -> base.Metrics:
  """Mean reward, exact match and length of greedy responses; a few of them.

  A reward that is NaN, which only a function on the host can give, counts as 0
  and in `eval/nan_rewards`. Of the first prompts there are also
  `sample/prompt` [4, P], `sample/response` [4, T] int32, -1 where there is no
  token, and `sample/reward` [4]; fewer if there are fewer prompts.
  """
  reward = jnp.nan_to_num(scores.reward)
  return {
    'eval/reward': jnp.mean(reward),
    'eval/reward_stderr': _standard_error(reward),
    'eval/nan_rewards': jnp.sum(jnp.isnan(scores.reward)),
    'eval/exact': jnp.mean(scores.exact),
    **_share('eval/share', scores),
    'eval/length': jnp.mean(jnp.sum(rollout.mask, 1)),
  } | _samples(rollout, scores)


def of_effective(
  static, batch: base.Batch, orders: jax.Array, effective: jax.Array
) -> base.Metrics:
  """How far the effective advantages of a group are from a sum of 0.

  With a baseline the advantages themselves sum to 0 in every group; what the
  clip and the mean make of them doesn't. Mean over groups and epochs of the
  absolute sum.

  Args:
    static: hashable part of the configuration.
    batch: of the step.
    orders: [U, B / M] int32 rows of each update.
    effective: [U, B / M] effective advantages, see `update.update`.
  """
  epochs = static.train.num_epochs
  group = batch.group[orders].reshape(epochs, -1)
  sums = jnp.zeros((epochs, static.rollout.num_prompts))
  sums = jax.vmap(lambda total, index, value: total.at[index].add(value))(
    sums, group, effective.reshape(epochs, -1)
  )
  return {'advantage/effective_group_sum': jnp.mean(jnp.abs(sums))}


def is_truncated(static, rollout: base.Rollout) -> jax.Array:
  """[B] bool, responses that were cut before a stop token."""
  return rollout.mask[:, -1] & (
    rollout.tokens[:, -1] != policy.make_task(static).stop
  )


def _share(name, scores):
  """Mean share of right tokens, where the answers are known."""
  return {} if scores.share is None else {name: jnp.mean(scores.share)}


def _kept_metrics(rollout):
  """Mean mass that truncated sampling drew from, where it did."""
  if rollout.kept_mass is None:
    return {}
  return {'rollout/kept_mass': jnp.mean(rollout.kept_mass, where=rollout.mask)}


def _samples(rollout, scores):
  tokens = jnp.where(rollout.valid, rollout.tokens, -1)[:_NUM_SAMPLES]
  mask = rollout.mask[:_NUM_SAMPLES]
  length = mask.shape[1]
  return {
    'sample/prompt': tokens[:, :-length],
    'sample/response': jnp.where(mask, tokens[:, -length:], -1),
    'sample/reward': scores.reward[:_NUM_SAMPLES],
  }


def _standard_error(x):
  return jnp.std(x, ddof=1) / jnp.sqrt(x.shape[0])

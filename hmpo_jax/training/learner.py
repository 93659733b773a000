"""The pure part of training: state in, state and metrics out, under one `jit`.

A step samples one rollout, turns rewards into group advantages, and makes
several epochs of minibatch updates against the policy that sampled. Where the
reward is a JAX function this is `train_step`; a reward on the host stands
between its halves `collect` and `learn`. `static` is the hashable part of a
configuration, `traced.static(config)`; all else is traced.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from hmpo_jax import base
from hmpo_jax.kernels import advantages as advantages_lib
from hmpo_jax.kernels import clips
from hmpo_jax.kernels import exponents
from hmpo_jax.kernels import kl
from hmpo_jax.model import sampling
from hmpo_jax.optim import factory
from hmpo_jax.tasks import task as task_lib
from hmpo_jax.training import clip_drift
from hmpo_jax.training import mechanism
from hmpo_jax.training import policy
from hmpo_jax.training import step_metrics
from hmpo_jax.training import update


class TrainState(NamedTuple):
  """All that a run carries from step to step, and that a checkpoint holds."""

  step: jax.Array  # [] int32 finished steps
  params: base.Params
  opt_state: optax.OptState
  controls: base.Controls  # order of the mean and clip range
  key: jax.Array  # [] typed key of the run, folded with the step, never spent
  past_params: base.Params | tuple  # leaves [staleness, ...], oldest first
  reference: base.Params | tuple  # KL anchor, () without KL
  measured: base.Metrics  # when `measure` was last true, see `train_step`
  skips: jax.Array  # [] int32 updates in a row skipped for a numerical cause


def init(
  static, hparams: base.HParams, params: base.Params, key: jax.Array
) -> TrainState:
  """State before the first step, from the parameters of the warm start."""
  lag = static.rollout.staleness
  repeat = lambda x: jnp.repeat(x[None], lag, axis=0)
  return TrainState(
    step=jnp.int32(0),
    params=params,
    opt_state=update.optimizer(static, hparams).init(params),
    controls=update.start_controls(hparams),
    key=key,
    past_params=jax.tree.map(repeat, params) if lag else (),
    reference=jax.tree.map(jnp.copy, params) if _has_anchor(static) else (),
    measured=_unmeasured(static),
    skips=jnp.int32(0),
  )


def train_step(
  static, state: TrainState, hparams: base.HParams, measure: jax.Array
) -> tuple[TrainState, base.Metrics]:
  """One rollout with all its updates, where the reward is a JAX function.

  Args:
    static: hashable part of the configuration.
    state: from `init` or the step before; may be donated.
    hparams: traced part of the configuration.
    measure: [] bool, whether to compare the gradients of different means on
      the last update (sixteen more backward passes), and the policy before and
      after its QK-clip; else what was last measured stays.

  Returns:
    The next state and the step's metrics, whose keys depend on `static` alone.
  """
  rollout = collect(static, state, hparams)
  scores = policy.make_judge(static, hparams.pays_exact)(rollout)
  return learn(static, state, hparams, rollout, scores, measure)


def collect(static, state: TrainState, hparams: base.HParams) -> base.Rollout:
  """The first half of a step: G responses to each of N new prompts."""
  task, shape = policy.make_task(static), static.rollout
  prompt_key, sample_key, *_ = _step_keys(state)
  fold = jax.vmap(jax.random.fold_in, (None, 0))
  draw = functools.partial(task_lib.draw_training, task)
  prompts = jax.vmap(draw)(fold(prompt_key, jnp.arange(shape.num_prompts)))
  keys = jax.vmap(fold, (0, None))(
    fold(sample_key, jnp.arange(shape.num_prompts)),
    jnp.arange(shape.group_size),
  )
  rollout = _sample(
    static, _sampler(static, state), prompts, keys, hparams.temperature
  )
  if static.rollout.old_logprobs == 'sampler':
    key = jax.random.fold_in(step_key(state), 5)  # after the `_step_keys`
    rollout = sampling.mismatched(
      key, rollout, hparams.mismatch_frac, hparams.mismatch_size
    )
  return rollout


def learn(
  static,
  state: TrainState,
  hparams: base.HParams,
  rollout: base.Rollout,
  scores: task_lib.Score,
  measure: jax.Array,
) -> tuple[TrainState, base.Metrics]:
  """The second half of a step: all updates on a rollout with its scores.

  Args:
    static: hashable part of the configuration.
    state: that `collect` had; may be donated.
    hparams: traced part of the configuration.
    rollout: from `collect`.
    scores: of its responses, in its order.
    measure: see `train_step`.
  """
  hparams = factory.rates_at(hparams, state.step)
  batch, orders, metrics = prepare(static, state, hparams, rollout, scores)
  updated, reports = _update_epochs(
    static, state, hparams, batch, orders, measure
  )
  controls, control_metrics = _end_step(hparams, updated.controls, reports)
  metrics |= step_metrics.of_rollout(static, rollout, scores) | control_metrics
  metrics |= update.summarise(reports) | updated.measured
  if not static.rollout.staleness:
    # The first update's forward is the sampler's policy, on its minibatch.
    metrics.setdefault(
      'rollout/sampler_gap_max', metrics['ratio/first_update_abs_log']
    )
  metrics |= step_metrics.of_effective(static, batch, orders, reports.effective)
  metrics['skipped/in_a_row'] = updated.skips
  past = ()
  if static.rollout.staleness:
    push = lambda past, new: jnp.concatenate([past[1:], new[None]])
    past = jax.tree.map(push, state.past_params, state.params)
  return updated._replace(
    step=state.step + 1, controls=controls, past_params=past
  ), metrics


def prepare(
  static,
  state: TrainState,
  hparams: base.HParams,
  rollout: base.Rollout,
  scores: task_lib.Score,
) -> tuple[base.Batch, jax.Array, base.Metrics]:
  """What the updates of a step learn from.

  Returns:
    The batch in a random order, the rows [U, B / M] int32 of each update, and
    metrics.
  """
  *_, permute_key, order_key, epoch_key = _step_keys(state)
  order = jax.random.permutation(order_key, scores.reward.shape[0])
  shuffled = jax.tree.map(lambda x: x[order], rollout)
  old_logprobs, ref_logprobs, metrics = _logprobs(
    static, state, hparams, shuffled
  )
  penalty, kl_metrics = _reward_penalty(
    static, hparams, shuffled, old_logprobs, ref_logprobs
  )
  rewards = scores.reward.at[order].add(-penalty)
  advantages, advantage_metrics = _advantages(
    static, hparams, rewards, permute_key
  )
  trained = (
    shuffled.mask
    & ~(hparams.mask_truncated & step_metrics.is_truncated(static, shuffled))[
      :, None
    ]
  )
  group = jnp.arange(len(order)) // static.rollout.group_size
  batch = base.Batch(
    shuffled.tokens,
    shuffled.valid,
    trained,
    old_logprobs,
    ref_logprobs,
    advantages[order],
    group[order],
    jnp.bool_(False),
  )
  orders = _minibatch_rows(static, len(order), epoch_key)
  return batch, orders, metrics | kl_metrics | advantage_metrics


def at_first_update(hparams: base.HParams, state: TrainState) -> update.Learned:
  """What the updates of a step start from.

  A scheduled order has moved on; a range that nothing tracks is that of
  `hparams`, which a controller may have changed since the step before.
  """
  exponent = exponents.at_step(
    hparams.exponent, state.controls.exponent, state.step
  )
  tracked = hparams.tracking.rate > 0
  widths = jax.tree.map(
    lambda moved, given: jnp.where(tracked, moved, given),
    state.controls.widths,
    update.start_widths(hparams),
  )
  return update.Learned(
    state.params, state.opt_state, base.Controls(exponent, widths)
  )


def take(
  static, batch: base.Batch, rows: jax.Array, is_first: jax.Array
) -> base.Batch:
  """The minibatch of one update: rows [B / M] int32 of the whole batch.

  Args:
    static: hashable part of the configuration.
    batch: from `prepare`.
    rows: from `prepare`.
    is_first: [] bool, no update was made since `prepare`.
  """
  is_same = (
    static.rollout.staleness == 0 and static.rollout.old_logprobs == 'recompute'
  )
  minibatch = jax.tree.map(lambda x: x[rows] if x.ndim else x, batch)
  return minibatch._replace(is_on_policy=is_first & is_same)


def respond(static, params: base.Params, prompts: jax.Array) -> base.Rollout:
  """One greedy response to each of the prompts [M, P]."""
  keys = jax.random.split(base.random_key(0), (len(prompts), 1))
  return _sample(static, params, prompts, keys, 1.0, greedy=True)


def evaluate(
  static,
  params: base.Params,
  prompts: jax.Array,
  pays_exact: jax.Array | bool = False,
) -> base.Metrics:
  """`step_metrics.of_held_out` of a task whose reward is a JAX function.

  Args:
    static: hashable part of the configuration.
    params: of the policy.
    prompts: [M, P] int32.
    pays_exact: see `task.score`.
  """
  rollout = respond(static, params, prompts)
  scores = policy.make_judge(static, pays_exact)(rollout)
  return step_metrics.of_held_out(rollout, scores)


def step_key(state: TrainState) -> jax.Array:
  """The key that decides all randomness of the step after this state."""
  return jax.random.fold_in(state.key, state.step)


def _step_keys(state):
  """Keys of prompts, sampling, permutation, batch order and epoch orders."""
  return jax.random.split(step_key(state), 5)


def _sampler(static, state):
  """The parameters that sample this step."""
  if static.rollout.staleness:
    return jax.tree.map(lambda x: x[0], state.past_params)
  return state.params


def _sample(static, params, prompts, keys, temperature, greedy=False):
  task = policy.make_task(static)
  return sampling.sample(
    policy.make_model(static),
    params,
    prompts,
    keys,
    response_len=task.response_len,
    stop=task.stop,
    pad=task.pad,
    temperature=temperature,
    greedy=greedy,
    top_k=static.rollout.top_k,
    top_p=static.rollout.top_p,
    bucket=static.rollout.bucket,
  )


def _has_anchor(static):
  return {static.loss.kl_estimator, static.reward.kl_estimator} != {'none'}


def _advantages(static, hparams, rewards, key):
  """[B] advantages; permuted within their groups where the control asks.

  They are NaN, which skips updates, in a group with a reward that is not
  finite, unless such responses are left out and others remain.
  """
  grouped = rewards.reshape(static.rollout.num_prompts, -1)
  advantages, metrics = advantages_lib.group_advantages(
    grouped, **static.advantage
  )
  finite = jnp.isfinite(grouped)
  sound = jnp.all(finite, axis=1, keepdims=True)
  sound |= hparams.exclude_nonfinite & jnp.any(finite)
  permuted = advantages_lib.permute_within_groups(key, advantages)
  chosen = jnp.where(hparams.permute_advantages, permuted, advantages)
  return jnp.where(sound, chosen, jnp.nan).reshape(-1), metrics


def _reward_penalty(static, hparams, rollout, old_logprobs, ref_logprobs):
  """[B] what the KL to the anchor takes from the rewards."""
  if static.reward.kl_estimator == 'none':
    return jnp.zeros(rollout.mask.shape[0]), {}
  divergence = kl.kl_in_reward(
    old_logprobs,
    ref_logprobs,
    rollout.mask,
    estimator=static.reward.kl_estimator,
  )
  return hparams.reward_kl_weight * divergence, {
    'reward/kl': jnp.mean(divergence)
  }


def _logprobs(static, state, hparams, rollout):
  """Log-probabilities [B, T] to compare with: of the sampler, of the anchor.

  They are computed on minibatches of the size that the updates use.
  """
  again = functools.partial(_rollout_logprobs, static, hparams, rollout)
  old_logprobs, metrics = rollout.logprobs, {}
  if static.rollout.old_logprobs == 'recompute':
    old_logprobs = again(_sampler(static, state))
    gap = jnp.where(rollout.mask, jnp.abs(old_logprobs - rollout.logprobs), 0)
    metrics['rollout/sampler_gap_max'] = jnp.max(gap)
  ref_logprobs = jnp.zeros_like(old_logprobs)
  if _has_anchor(static):
    ref_logprobs = again(state.reference)
  return old_logprobs, ref_logprobs, metrics


def _rollout_logprobs(static, hparams, rollout, params):
  """[B, T] log-probabilities of the responses by the training forward."""
  count = static.train.num_minibatches
  split = jax.tree.map(
    lambda x: x.reshape(count, -1, x.shape[-1]),
    (rollout.tokens, rollout.valid, rollout.mask),
  )

  def compute(part):
    tokens, valid, mask = part
    return policy.forward_in_microbatches(
      static, params, tokens, valid, mask, hparams.temperature
    ).logprobs

  return jax.lax.map(compute, split).reshape(rollout.mask.shape)


def _update_epochs(static, state, hparams, batch, orders, measure):
  """All updates of a step, one scan over epochs x minibatches."""
  number = jnp.arange(len(orders))

  def body(carry, inputs):
    before, measured, skips = carry
    rows, is_first, is_last = inputs
    minibatch = take(static, batch, rows, is_first)
    when = functools.partial(_when, measure & is_last)
    measured = when(
      measured,
      lambda: (
        mechanism.compare_means(static, before, hparams, minibatch)
        | {'mechanism/step': state.step + 1}
      ),
    )
    learned, reports = update.update(static, before, hparams, minibatch)
    measured = when(
      measured,
      lambda: clip_drift.measure(
        static, learned, hparams, minibatch, reports.cause
      ),
    )
    skips = jnp.where(update.is_sound(reports.cause), 0, skips + 1)
    return (learned, measured, skips), reports

  learned = at_first_update(hparams, state)
  (learned, measured, skips), reports = jax.lax.scan(
    body,
    (learned, state.measured, state.skips),
    (orders, number == 0, number == len(orders) - 1),
  )
  state = state._replace(measured=measured, skips=skips, **learned._asdict())
  return state, reports


def _unmeasured(static):
  """What stands for measurements before the first; empty if none are made."""
  if not static.mechanism.is_on:
    return {}
  names = (*mechanism.KEYS, *clip_drift.keys(static))
  return {name: jnp.float32(0) for name in names} | {
    'mechanism/step': jnp.int32(0)
  }


def _when(is_due, measured, measure):
  """`measured`, with what `measure` returns in it where that is due."""
  if not measured:
    return measured
  return jax.lax.cond(is_due, lambda: measured | measure(), lambda: measured)


def _end_step(hparams, controls, reports):
  """Controls for the next step, from what the updates of this one report."""
  metrics = reports.metrics
  sound = update.is_sound(reports.cause)
  gap = jnp.sum(jnp.where(sound, metrics['agm/log_gap'], 0)) / jnp.sum(sound)
  exponent, exponent_metrics = exponents.after_step(
    hparams.exponent, controls.exponent, gap
  )
  # In the first updates of a rollout the ratios are still close to 1.
  late = sound & (jnp.arange(len(sound)) >= len(sound) // 2)
  shares = (
    jnp.where(late, metrics[name], 0)
    for name in (
      'clip/low_frac',
      'clip/high_frac',
      'advantage/negative_frac',
      'advantage/positive_frac',
    )
  )
  widths = clips.track(hparams.tracking, controls.widths, *shares)
  # A record holds finite numbers only; an open side shows as the largest.
  used = {
    'clip/eps_low': controls.widths.eps_low,
    'clip/eps_high': jnp.nan_to_num(controls.widths.eps_high),
    'exponent/p': controls.exponent.p,
  }
  return base.Controls(exponent, widths), exponent_metrics | used


def _minibatch_rows(static, size, key):
  """[U, B / M] int32 rows of each update, every row once an epoch."""
  # The batch is in random order already: the first epoch takes it as it is.
  orders = [jnp.arange(size)] + [
    jax.random.permutation(jax.random.fold_in(key, epoch), size)
    for epoch in range(1, static.train.num_epochs)
  ]
  count = static.train.num_epochs * static.train.num_minibatches
  return jnp.stack(orders).reshape(count, -1)

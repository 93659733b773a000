"""The pure part of training: state in, state and metrics out, under one `jit`.

A step samples one rollout, turns rewards into group advantages, and makes
several epochs of minibatch updates against the policy that sampled. Where the
reward is a JAX function this is `train_step`; a reward on the host stands
between its halves `collect` and `learn`. `static` is `config.static(config)`,
the hashable part; all else is traced.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from hmpo_jax import base
from hmpo_jax import mechanism
from hmpo_jax import policy
from hmpo_jax import rollout as rollout_lib
from hmpo_jax import update
from hmpo_jax.kernels import advantages as advantages_lib
from hmpo_jax.tasks import task as task_lib


class TrainState(NamedTuple):
  """All that a run carries from step to step, and that a checkpoint holds."""
  step: jax.Array  # [] int32 finished steps
  params: base.Params
  opt_state: optax.OptState
  key: jax.Array  # [] typed key of the run, folded with the step, never spent
  past_params: base.Params | tuple  # leaves [staleness, ...], oldest first
  reference: base.Params | tuple  # KL anchor, () without KL
  compared: base.Metrics  # last comparison of means, see mechanism.py
  skips: jax.Array  # [] int32 updates in a row skipped for a numerical cause


def init(static, hparams: base.HParams, params: base.Params,
         key: jax.Array) -> TrainState:
  """State before the first step, from the parameters of the warm start."""
  lag = static.rollout.staleness
  repeat = lambda x: jnp.repeat(x[None], lag, axis=0)
  has_kl = static.loss.kl_estimator != 'none'
  return TrainState(
      step=jnp.int32(0),
      params=params,
      opt_state=update.optimizer(static, hparams).init(params),
      key=key,
      past_params=jax.tree.map(repeat, params) if lag else (),
      reference=jax.tree.map(jnp.copy, params) if has_kl else (),
      compared={name: jnp.float32(0) for name in mechanism.KEYS},
      skips=jnp.int32(0))


def train_step(static, state: TrainState, hparams: base.HParams,
               measure: jax.Array) -> tuple[TrainState, base.Metrics]:
  """One rollout with all its updates, where the reward is a JAX function.

  Args:
    static: hashable part of the configuration.
    state: from `init` or the step before; may be donated.
    hparams: traced part of the configuration.
    measure: [] bool, whether to compare the gradients of different means on
      the last update (three more backward passes); else the last comparison
      stays.

  Returns:
    The next state and the step's metrics, whose keys depend on `static` alone.
  """
  rollout = collect(static, state, hparams)
  scores = task_lib.score_rollout(policy.make_task(static), rollout)
  return learn(static, state, hparams, rollout, scores, measure)


def collect(static, state: TrainState, hparams: base.HParams) -> base.Rollout:
  """The first half of a step: G responses to each of N new prompts."""
  task, shape = policy.make_task(static), static.rollout
  prompt_key, sample_key, *_ = _step_keys(state)
  fold = jax.vmap(jax.random.fold_in, (None, 0))
  draw = functools.partial(task_lib.draw_training, task)
  prompts = jax.vmap(draw)(fold(prompt_key, jnp.arange(shape.num_prompts)))
  keys = jax.vmap(fold, (0, None))(fold(sample_key,
                                        jnp.arange(shape.num_prompts)),
                                   jnp.arange(shape.group_size))
  return _sample(static, _sampler(static, state), prompts, keys,
                 hparams.temperature)


def learn(static, state: TrainState, hparams: base.HParams,
          rollout: base.Rollout, scores: task_lib.Score,
          measure: jax.Array) -> tuple[TrainState, base.Metrics]:
  """The second half of a step: all updates on a rollout with its scores.

  Args:
    static: hashable part of the configuration.
    state: that `collect` had; may be donated.
    hparams: traced part of the configuration.
    rollout: from `collect`.
    scores: of its responses, in its order.
    measure: see `train_step`.
  """
  batch, orders, metrics = prepare(static, state, hparams, rollout, scores)
  updated, update_metrics = _update_epochs(static, state, hparams, batch,
                                           orders, measure)
  metrics |= _rollout_metrics(static, rollout, scores) | update_metrics
  past = ()
  if static.rollout.staleness:
    push = lambda past, new: jnp.concatenate([past[1:], new[None]])
    past = jax.tree.map(push, state.past_params, state.params)
  return updated._replace(step=state.step + 1, past_params=past), metrics


def prepare(
    static, state: TrainState, hparams: base.HParams, rollout: base.Rollout,
    scores: task_lib.Score) -> tuple[base.Batch, jax.Array, base.Metrics]:
  """What the updates of a step learn from.

  Returns:
    The batch in a random order, the rows [U, B / M] int32 of each update, and
    metrics.
  """
  *_, permute_key, order_key, epoch_key = _step_keys(state)
  advantages, metrics = _advantages(static, hparams, scores.reward, permute_key)
  batch, batch_metrics = _make_batch(static, state, hparams, rollout,
                                     advantages, order_key)
  orders = _minibatch_rows(static, len(batch.advantages), epoch_key)
  return batch, orders, metrics | batch_metrics


def take(static, batch: base.Batch, rows: jax.Array,
         is_first: jax.Array) -> base.Batch:
  """The minibatch of one update: rows [B / M] int32 of the whole batch.

  Args:
    static: hashable part of the configuration.
    batch: from `prepare`.
    rows: from `prepare`.
    is_first: [] bool, no update was made since `prepare`.
  """
  is_same = (
      static.rollout.staleness == 0 and
      static.rollout.old_logprobs == 'recompute')
  minibatch = jax.tree.map(lambda x: x[rows] if x.ndim else x, batch)
  return minibatch._replace(is_on_policy=is_first & is_same)


def respond(static, params: base.Params, prompts: jax.Array) -> base.Rollout:
  """One greedy response to each of the prompts [M, P]."""
  keys = jax.random.split(jax.random.key(0), (len(prompts), 1))
  return _sample(static, params, prompts, keys, 1., greedy=True)


def heldout_metrics(rollout: base.Rollout,
                    scores: task_lib.Score) -> base.Metrics:
  """Mean reward, exact match and length of greedy responses.

  A reward that is NaN, which only a function on the host can give, counts as 0
  and in `eval/nan_rewards`.
  """
  reward = jnp.nan_to_num(scores.reward)
  return {
      'eval/reward': jnp.mean(reward),
      'eval/reward_stderr': _standard_error(reward),
      'eval/nan_rewards': jnp.sum(jnp.isnan(scores.reward)),
      'eval/exact': jnp.mean(scores.exact),
      'eval/length': jnp.mean(jnp.sum(rollout.mask, 1)),
  }


def evaluate(static, params: base.Params, prompts: jax.Array) -> base.Metrics:
  """`heldout_metrics` of a task whose reward is a JAX function."""
  rollout = respond(static, params, prompts)
  scores = task_lib.score_rollout(policy.make_task(static), rollout)
  return heldout_metrics(rollout, scores)


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
  return rollout_lib.sample(
      policy.make_model(static),
      params,
      prompts,
      keys,
      response_len=task.response_len,
      stop=task.stop,
      pad=task.pad,
      temperature=temperature,
      greedy=greedy)


def _advantages(static, hparams, rewards, key):
  """[B] advantages; permuted within their groups where the control asks."""
  grouped = rewards.reshape(static.rollout.num_prompts, -1)
  advantages, metrics = advantages_lib.group_advantages(grouped,
                                                        **static.advantage)
  permuted = advantages_lib.permute_within_groups(key, advantages)
  chosen = jnp.where(hparams.permute_advantages, permuted, advantages)
  return chosen.reshape(-1), metrics


def _make_batch(static, state, hparams, rollout, advantages, key):
  """The rollout in a random order, with log-probabilities to compare with.

  They are computed on minibatches of the size that the updates use, so that
  the ratio of the first update is 1 to the last bit.
  """
  order = jax.random.permutation(key, advantages.shape[0])
  rollout, advantages = jax.tree.map(lambda x: x[order], (rollout, advantages))
  trained = rollout.mask & ~(hparams.mask_truncated
                             & _truncated(static, rollout))[:, None]
  again = functools.partial(_rollout_logprobs, static, hparams, rollout)
  recomputed = again(_sampler(static, state))
  from_sampler = static.rollout.old_logprobs == 'sampler'
  old_logprobs = rollout.logprobs if from_sampler else recomputed
  ref_logprobs = jnp.zeros_like(old_logprobs)
  if static.loss.kl_estimator != 'none':
    ref_logprobs = again(state.reference)
  gap = jnp.where(rollout.mask, jnp.abs(recomputed - rollout.logprobs), 0)
  batch = base.Batch(rollout.tokens, rollout.valid, trained, old_logprobs,
                     ref_logprobs, advantages, jnp.bool_(False))
  return batch, {'rollout/sampler_gap_max': jnp.max(gap)}


def _rollout_logprobs(static, hparams, rollout, params):
  """[B, T] log-probabilities of the responses by the training forward."""
  count = static.train.num_minibatches
  split = jax.tree.map(lambda x: x.reshape(count, -1, x.shape[-1]),
                       (rollout.tokens, rollout.valid, rollout.mask))

  def compute(part):
    tokens, valid, mask = part
    return policy.response_logprobs(static, params, tokens, valid, mask,
                                    hparams.temperature)[0]

  return jax.lax.map(compute, split).reshape(rollout.mask.shape)


def _update_epochs(static, state, hparams, batch, orders, measure):
  """All updates of a step, one scan over epochs x minibatches."""
  number = jnp.arange(len(orders))

  def body(carry, inputs):
    params, opt_state, compared, skips = carry
    rows, is_first, is_last = inputs
    minibatch = take(static, batch, rows, is_first)
    compared = jax.lax.cond(
        measure & is_last,
        lambda: mechanism.compare_means(static, params, hparams, minibatch),
        lambda: compared)
    params, opt_state, reports = update.update(static, params, opt_state,
                                               hparams, minibatch)
    skips = jnp.where(update.is_sound(reports.cause), 0, skips + 1)
    return (params, opt_state, compared, skips), reports

  start = (state.params, state.opt_state, state.compared, state.skips)
  carry, reports = jax.lax.scan(
      body, start, (orders, number == 0, number == len(orders) - 1))
  params, opt_state, compared, skips = carry
  state = state._replace(
      params=params, opt_state=opt_state, compared=compared, skips=skips)
  metrics = update.summarise(reports) | compared | {'skipped/in_a_row': skips}
  return state, metrics


def _minibatch_rows(static, size, key):
  """[U, B / M] int32 rows of each update, every row once an epoch."""
  # The batch is in random order already: the first epoch takes it as it is.
  orders = [jnp.arange(size)] + [
      jax.random.permutation(jax.random.fold_in(key, epoch), size)
      for epoch in range(1, static.train.num_epochs)
  ]
  count = static.train.num_epochs * static.train.num_minibatches
  return jnp.stack(orders).reshape(count, -1)


def _truncated(static, rollout):
  """[B] bool, responses that were cut before a stop token."""
  return rollout.mask[:, -1] & (
      rollout.tokens[:, -1] != policy.make_task(static).stop)


def _rollout_metrics(static, rollout, scores):
  length = jnp.sum(rollout.mask, 1)
  return {
      'reward/mean': jnp.mean(scores.reward),
      'reward/std': jnp.std(scores.reward),
      'reward/exact': jnp.mean(scores.exact),
      'rollout/length_mean': jnp.mean(length),
      'rollout/truncated_frac': jnp.mean(_truncated(static, rollout)),
      'rollout/tokens': jnp.sum(length),
  }


def _standard_error(x):
  return jnp.std(x, ddof=1) / jnp.sqrt(x.shape[0])

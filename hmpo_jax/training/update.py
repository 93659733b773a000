"""One optimizer update, the reasons to skip it, and what it reports."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from hmpo_jax import base
from hmpo_jax.kernels import clips
from hmpo_jax.kernels import exponents
from hmpo_jax.model import transformer
from hmpo_jax.optim import factory
from hmpo_jax.optim import muon_clip
from hmpo_jax.training import metric_table
from hmpo_jax.training import objective

# Why an update is skipped, in the order in which a cause hides the later ones.
SKIP_CAUSES = (
  'reward',
  'logprob',
  'statistic',
  'loss',
  'gradient',
  'update',
  'no_signal',
)
_NO_SIGNAL = SKIP_CAUSES.index('no_signal')
NUMERICAL_CAUSES = SKIP_CAUSES[:_NO_SIGNAL]

# By what the table of metrics says of each; of all others it is the mean.
_OF_ALL = {'mean_of_all': jnp.mean, 'sum_of_all': jnp.sum}
_EXTREMES = {'max': jnp.max, 'min': jnp.min}


class Reports(NamedTuple):
  """What an update reports; a scan stacks each leaf to [U, ...]."""

  metrics: base.Metrics  # scalars, [N_l, H], iterates [K + 1], histograms
  max_logits: jax.Array  # [N_l, H]
  effective: jax.Array  # [B] effective advantages, see `update`; 0 if skipped
  cause: jax.Array  # [] int32 into SKIP_CAUSES, its length if not skipped


class Learned(NamedTuple):
  """What updates change."""

  params: base.Params
  opt_state: optax.OptState
  controls: base.Controls


class Trace(NamedTuple):
  """The arrays of an update, in the order in which they are made."""

  params: base.Params
  opt_state: optax.OptState
  controls: base.Controls
  advantages: jax.Array  # [B]
  old_logprobs: jax.Array  # [B, T], 0 off the mask
  max_logits: jax.Array  # [N_l, H], 0 where no key was visible
  logprobs: jax.Array  # [B, T], 0 off the mask
  loss: jax.Array  # []
  gradient: base.Params
  gradient_norm: jax.Array  # [] infinite beyond 1e19, which is a fault too
  update: base.Params
  update_norm: jax.Array  # []


def optimizer(
  static, hparams: base.HParams
) -> optax.GradientTransformationExtraArgs:
  """The transformation of a configuration; its numbers may be traced."""
  return factory.make(
    static.optim,
    hparams,
    dimension_numbers=functools.partial(
      transformer.muon_dimension_numbers, heads=static.optim.muon_heads
    ),
    attention=transformer.attention_weights,
  )


def start_controls(hparams: base.HParams) -> base.Controls:
  """Order of the mean and clip range before the first step."""
  return base.Controls(exponents.init(hparams.exponent), start_widths(hparams))


def start_widths(hparams: base.HParams) -> clips.Widths:
  """Clip range before anything tracks it."""
  return clips.Widths(
    jnp.array(hparams.loss['clip_eps_low']),
    jnp.array(hparams.loss['clip_eps_high']),
  )


def update(
  static, learned: Learned, hparams: base.HParams, batch: base.Batch
) -> tuple[Learned, Reports]:
  """One update, or none where there is a cause to skip it.

  A numerical cause is a value that is not finite among the advantages
  ('reward'), the log-probabilities, the attention statistics, the loss, the
  gradients or the updates. 'no_signal' is a minibatch in which every row is
  clipped, masked or of zero advantage: Muon and Adam would walk on in a stale
  direction there.
  A skipped update leaves all that is learned bit-equal.

  The effective advantage of a row is what multiplies the gradient of its mean
  log-probability, times the number of rows: A_i M_i where it is not clipped, of
  a loss that is a mean over rows of token means.

  Args:
    static: hashable part of the configuration.
    learned: before the update.
    hparams: traced part of the configuration.
    batch: one minibatch.
  """
  (loss, forward), (grads, probed) = objective.differentiate(
    static, hparams, learned.controls, batch, learned.params
  )
  updates, opt_state = optimizer(static, hparams).update(
    grads, learned.opt_state, learned.params, max_logits=forward.max_logits
  )
  cause = _skip_cause(batch, forward, loss, grads, updates)
  skip = is_skipped(cause)
  rows = jnp.any(batch.mask, axis=1)
  exponent, metrics = exponents.after_update(
    hparams.exponent, learned.controls.exponent, probed.order, rows
  )
  new = Learned(
    optax.apply_updates(learned.params, updates),
    opt_state,
    learned.controls._replace(exponent=exponent),
  )
  new = jax.tree.map(lambda new, old: jnp.where(skip, old, new), new, learned)
  metrics |= forward.metrics | {'loss/total': loss}
  metrics |= _size_metrics(grads, updates, skip)
  metrics |= _clip_metrics(hparams, forward.max_logits, skip, new.opt_state)
  effective = jnp.where(skip, 0, -probed.logprobs * jnp.sum(rows))
  return new, Reports(metrics, forward.max_logits, effective, cause)


def trace(
  static, learned: Learned, hparams: base.HParams, batch: base.Batch
) -> Trace:
  """The arrays of an update, of which the first bad one names the fault.

  The arguments are those of `update`.
  """
  (loss, forward), (grads, _) = objective.differentiate(
    static, hparams, learned.controls, batch, learned.params
  )
  updates, _ = optimizer(static, hparams).update(
    grads, learned.opt_state, learned.params, max_logits=forward.max_logits
  )
  on_mask = lambda x: jnp.where(batch.mask, x, 0)
  # -inf: no key was visible, or no update was made.
  seen = lambda logits: jnp.where(jnp.isneginf(logits), 0, logits)
  clip = factory.clip_state(learned.opt_state)
  opt_state = optax.tree.set(
    learned.opt_state,
    last_max=seen(clip.last_max),
    max_ever=seen(clip.max_ever),
  )
  return Trace(
    learned.params,
    opt_state,
    learned.controls,
    batch.advantages,
    on_mask(batch.old_logprobs),
    seen(forward.max_logits),
    on_mask(forward.logprobs),
    loss,
    grads,
    optax.tree.norm(grads),
    updates,
    optax.tree.norm(updates),
  )


def is_skipped(cause: jax.Array) -> jax.Array:
  """Whether an update was not made."""
  return cause < len(SKIP_CAUSES)


def is_sound(cause: jax.Array) -> jax.Array:
  """Whether an update had no numerical cause to be skipped."""
  return cause >= _NO_SIGNAL


def summarise(reports: Reports) -> base.Metrics:
  """From the reports of a step's updates [U, ...] to the step's metrics.

  Updates that were skipped for a numerical cause count only in what the table
  of metrics reduces over all of them.
  """
  sound = is_sound(reports.cause)
  metrics = {}
  for name, values in reports.metrics.items():
    reduce = metric_table.find(name).reduce
    if reduce in _OF_ALL:
      metrics[name] = _OF_ALL[reduce](values)
      continue
    counts = sound.reshape(-1, *(1,) * (values.ndim - 1))
    if reduce == 'sum':
      metrics[name] = jnp.sum(jnp.where(counts, values, 0), axis=0)
      continue
    # Without a sound update the metric has no value: NaN says so.
    values = jnp.where(counts, values, values[jnp.argmax(sound)])
    values = jnp.where(jnp.any(sound), values, jnp.nan)
    if reduce in _EXTREMES:
      metrics[name] = _EXTREMES[reduce](values)
    else:
      total = jnp.sum(jnp.where(counts, values, 0), axis=0)
      metrics[name] = total / jnp.sum(sound)
  for index, name in enumerate(SKIP_CAUSES):
    metrics[f'skipped/{name}'] = jnp.sum(reports.cause == index)
  metrics['qk/max_logit'] = jnp.max(reports.max_logits)
  metrics['qk/max_logit_per_head'] = jnp.max(reports.max_logits, axis=0)
  metrics['qk/max_logit_per_update'] = jnp.max(reports.max_logits, axis=(1, 2))
  metrics['ratio/first_update_abs_log'] = reports.metrics['log_ratio/abs_max'][
    0
  ]
  metrics['log_ratio/last_update_sigma'] = jnp.sqrt(
    reports.metrics['log_ratio/row_variance'][-1]
  )
  return metrics


def _skip_cause(batch, forward, loss, grads, updates):
  """[] int32 index of the first cause to skip, len(SKIP_CAUSES) if none."""
  bad = lambda x: ~jnp.all(jnp.isfinite(x))
  # The sum is finite if and only if both terms are.
  seen = jnp.where(batch.mask, forward.logprobs + batch.old_logprobs, 0)
  return jnp.argmax(
    jnp.stack(
      [
        bad(batch.advantages),
        bad(seen),
        jnp.any(
          jnp.isnan(forward.max_logits) | jnp.isposinf(forward.max_logits)
        ),
        bad(loss),
        bad(optax.tree.norm(grads)),
        bad(optax.tree.norm(updates)),
        forward.metrics['loss/live_frac'] == 0,
        jnp.bool_(True),
      ]
    )
  )


def _size_metrics(grads, updates, skip):
  """Norms of gradient and update, and the cosine of update and -gradient."""
  grad_norm, update_norm = optax.tree.norm(grads), optax.tree.norm(updates)
  product = grad_norm * update_norm
  cosine = -optax.tree.vdot(grads, updates) / jnp.where(product > 0, product, 1)
  return {
    'grad/norm': grad_norm,
    'update/norm': jnp.where(skip, 0, update_norm),
    'update/cosine': jnp.where(skip, 0, cosine),
  }


def _clip_metrics(hparams, max_logits, skip, opt_state):
  """What the QK-clip saw and did.

  Whether a logit was over monitor_tau is told of skipped updates too; all that
  the state counts is of those that were made.
  """
  state = factory.clip_state(opt_state)
  factor = jnp.where(skip, 1, jnp.min(state.last_factor))
  over = jnp.any(~(max_logits <= hparams.monitor_tau))  # NaN is over too.
  so_far = muon_clip.telemetry(state)
  return {
    'qk/over_monitor_tau_frac': over.astype(jnp.float32),
    'qk/clipped_frac': jnp.float32(factor < 1),
    'qk/factor_min': factor,
    'qk/heads_ever_clipped_frac': so_far['heads_ever_clipped_frac'],
    'qk/exploded': jnp.float32(so_far['exploded']),
  }

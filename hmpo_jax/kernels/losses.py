"""Losses of importance ratios; each returns (loss [], metrics).

Here are those of one mean for each sequence, and all of them by name; those
whose terms are tokens stand in token_losses.py.

All start from x_t = logprobs - old_logprobs on the tokens of the mask, in
float32 or better, and maximise an objective J; the loss is -J. The gradient
flows through `logprobs` (and p) only. With n_i tokens in row i, r_t = exp(x_t)
and A_i its advantage, keep(q) = not (A > 0 and q > 1 + eps_high) and not (A < 0
and q < 1 - eps_low), the coefficients of grad log pi_t are, up to 1 / B:

    power_mean_loss   A M_p softmax(p x)_t keep(M_p)          sequence clip
                      A M_p(r') softmax(p x')_t 1[r'_t = r_t]   token clips
    arithmetic_harmonic_loss   A sqrt(M_1 M_-1) (w_t(1) + w_t(-1)) / 2 keep
    gspo_token_loss   A_t M_0 keep(M_0) / n
    grpo_loss         A r_t keep(r_t) / n
    cispo_loss        A min(max(r_t, 1 - eps_low), 1 + eps_high) B / sum_i n_i
    sapo_loss         A r_t sech^2(tau (r_t - 1) / 2) / n
    reinforce_loss    A / n

At x = 0 those with 1 / n are one and the same. Named algorithms:

    HMPO      power_mean_loss, p = -1, clip='sequence'
    GSPO      power_mean_loss, p = 0, clip='sequence'
    GMPO      power_mean_loss, p = 0, clip='token_log', eps .4 and .4
    HoelderPO power_mean_loss, p from 2 to -2, eps .2 and .2
    GRPO      grpo_loss, or power_mean_loss, p = 1, clip='token'
    DAPO      grpo_loss, eps .2 and .28, aggregation='token-mean'
    BNPO      grpo_loss, aggregation='token-mean'
    Dr. GRPO  grpo_loss, aggregation='sequence-mean-token-sum', length_scale the
              longest response; advantages that are centred only

Arguments of all of them (shapes are those of base.py):

    logprobs       [B, T] under the policy that learns, in nats.
    old_logprobs   [B, T] under the policy that sampled.
    advantages     [B].
    mask           [B, T] bool, true on the trained tokens.
    clip_eps_low   [] how far below 1 a ratio may fall before it is clipped.
    clip_eps_high  [] how far above 1 it may rise.
    dual_clip      [] above 1: where A < 0, J is at least dual_clip * A (Ye et
                   al., https://arxiv.org/abs/1912.09729); inf = off.
    log_ratio_max  [] bound on |x_t|, in nats; no gradient beyond; inf = off.
    aggregation    and length_scale: see ratios.aggregate.

Without a token the loss is 0; rows without tokens count nowhere. Wrong shapes
or dtypes raise AssertionError, unknown options ValueError, when traced.
"""

from collections.abc import Callable
import inspect
import math

import jax
import jax.numpy as jnp

from hmpo_jax.kernels import clips
from hmpo_jax.kernels import loss_metrics
from hmpo_jax.kernels import means
from hmpo_jax.kernels import ratios
from hmpo_jax.kernels import token_losses

CLIPS = ('sequence', 'token', 'token_log')


def power_mean_loss(
  logprobs: jax.Array,
  old_logprobs: jax.Array,
  advantages: jax.Array,
  mask: jax.Array,
  *,
  p: ratios.Scalar,
  clip_eps_low: ratios.Scalar,
  clip_eps_high: ratios.Scalar,
  clip: str = 'sequence',
  clip_center: str = 'one',
  p_clip: ratios.Scalar | None = None,
  p_grad: ratios.Scalar | None = None,
  dual_clip: ratios.Scalar = math.inf,
  aggregation: str = 'sequence-mean-token-mean',
  length_scale: ratios.Scalar = 1.0,
  log_ratio_max: ratios.Scalar = 20.0,
) -> loss_metrics.Result:
  """One power mean M_p of the ratios for each sequence.

    sequence    J_i = min(M_p(r) A, clip(M_p(r), 1 - eps_low, 1 + eps_high) A)
    token       J_i = M_p(r') A with r'_t = r_t, but at most 1 + eps_high where
                A > 0 and at least 1 - eps_low where A < 0
    token_log   the same with x'_t at most eps_high, at least -eps_low

  'sequence' is GSPO at p = 0: "Group Sequence Policy Optimization" by Zheng et
  al. (https://arxiv.org/abs/2507.18071), eq. 5 and 7; any p is HoelderPO
  (https://arxiv.org/abs/2605.12058). 'token' is GRPO at p = 1; 'token_log' is
  GMPO at p = 0 (https://arxiv.org/abs/2507.20673). The other arguments are
  those of the module.

  Args:
    logprobs: [B, T].
    old_logprobs: [B, T].
    advantages: [B].
    mask: [B, T] bool.
    p: [] or [B] order of the mean; traced, differentiable.
    clip_eps_low: [].
    clip_eps_high: [].
    clip: one of CLIPS.
    clip_center: where the range of 'sequence' lies, see clips.center.
    p_clip: [] or [B] order of the mean that decides what 'sequence' stops;
      None or infinity is p.
    p_grad: [] or [B] order of the token weights in the gradient; the value, and
      the derivative in p, stay those of p. None or infinity is p.
    dual_clip: [].
    aggregation: str.
    length_scale: [].
    log_ratio_max: [].
  """
  ratio = ratios.log_ratio(logprobs, old_logprobs, mask, log_ratio_max)
  rows, advantages = ratios.of_rows(advantages, mask)
  p = jnp.broadcast_to(jnp.asarray(p, ratio.x.dtype), rows.shape)
  clip_eps = clip_eps_low, clip_eps_high
  if clip == 'sequence':
    log_mean, weights = _mean(ratio.x, mask, p, p_grad)
    position = clips.center(ratio.x, mask, _or(p_clip, p), clip_center)
    log_value, clipped = _clip_rows(log_mean, advantages, position, clip_eps)
  else:
    if clip_center != 'one' or p_clip is not None:
      raise ValueError(
        f'{clip_center=}, {p_clip=}: must be one and None with '
        f'{clip=}, which stops tokens'
      )
    clipped = clip_tokens(clip, ratio.x, advantages, *clip_eps)
    log_value, weights = _mean(clipped.values, mask, p, p_grad)
    log_mean, weights = log_value, jnp.where(clipped.stopped, 0, weights)
  objective, dual = clips.objective(log_value, advantages, dual_clip)
  terms = loss_metrics.Terms(
    objective, jnp.exp(log_mean), weights, clipped, dual
  )
  loss, metrics = loss_metrics.result(
    ratio, advantages, terms, aggregation, length_scale
  )
  return loss, metrics | loss_metrics.of_order(ratio, p)


def arithmetic_harmonic_loss(
  logprobs: jax.Array,
  old_logprobs: jax.Array,
  advantages: jax.Array,
  mask: jax.Array,
  *,
  clip_eps_low: ratios.Scalar,
  clip_eps_high: ratios.Scalar,
  dual_clip: ratios.Scalar = math.inf,
  aggregation: str = 'sequence-mean-token-mean',
  length_scale: ratios.Scalar = 1.0,
  log_ratio_max: ratios.Scalar = 20.0,
) -> loss_metrics.Result:
  """sqrt(M_1 M_-1), the limit of the A-H iteration, clipped as a sequence.

  It is the geometric mean for two tokens only, see
  means.arithmetic_harmonic_limit. The arguments are those of the module.
  """
  ratio = ratios.log_ratio(logprobs, old_logprobs, mask, log_ratio_max)
  _, advantages = ratios.of_rows(advantages, mask)
  log_a, log_h = (means.log_power_mean(ratio.x, mask, p) for p in (1, -1))
  log_mean = means.arithmetic_harmonic_limit(log_a, log_h)
  weights_a, weights_h = (
    means.token_weights(ratio.x, mask, p) for p in (1, -1)
  )
  position = jnp.zeros_like(log_mean), jax.lax.stop_gradient(log_mean)
  log_value, clipped = _clip_rows(
    log_mean, advantages, position, (clip_eps_low, clip_eps_high)
  )
  objective, dual = clips.objective(log_value, advantages, dual_clip)
  weights = (weights_a + weights_h) / 2
  terms = loss_metrics.Terms(
    objective, jnp.exp(log_mean), weights, clipped, dual
  )
  return loss_metrics.result(
    ratio, advantages, terms, aggregation, length_scale
  )


# All losses have their public names here.
gspo_token_loss = token_losses.gspo_token_loss
grpo_loss = token_losses.grpo_loss
cispo_loss = token_losses.cispo_loss
sapo_loss = token_losses.sapo_loss
reinforce_loss = token_losses.reinforce_loss

LOSSES: dict[str, Callable[..., loss_metrics.Result]] = {
  'power_mean': power_mean_loss,
  'arithmetic_harmonic': arithmetic_harmonic_loss,
  'gspo_token': gspo_token_loss,
  'grpo': grpo_loss,
  'cispo': cispo_loss,
  'sapo': sapo_loss,
  'reinforce': reinforce_loss,
}


def options(name: str) -> tuple[str, ...]:
  """Names of the keyword arguments of a loss, a key of LOSSES."""
  parameters = inspect.signature(LOSSES[name]).parameters.values()
  return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)


# Those of all losses, each once.
OPTIONS = tuple(dict.fromkeys(key for name in LOSSES for key in options(name)))


def clip_tokens(
  clip: str,
  log_ratio: jax.Array,
  advantages: jax.Array,
  clip_eps_low: ratios.Scalar,
  clip_eps_high: ratios.Scalar,
) -> clips.Clipped:
  """Log-ratios [B, T] after the one-sided clip of each token.

  Args:
    clip: one of CLIPS; 'sequence', which clips no token, as 'token'.
    log_ratio: [B, T] nats.
    advantages: [B].
    clip_eps_low: [] of the ratio, or with 'token_log' of its log.
    clip_eps_high: [].

  Raises:
    ValueError: unknown clip.
  """
  if clip not in CLIPS:
    raise ValueError(f'{clip=}: must be one of {", ".join(CLIPS)}')
  if clip == 'token_log':
    low_edge, high_edge = (
      jax.lax.stop_gradient(jnp.asarray(edge, log_ratio.dtype))
      for edge in (-clip_eps_low, clip_eps_high)
    )
  else:
    low_edge, high_edge = clips.edges(
      clip_eps_low, clip_eps_high, log_ratio.dtype
    )
  return clips.one_sided(log_ratio, advantages[:, None], low_edge, high_edge)


def _mean(x, mask, p, p_grad):
  """[B] log M_p, and the weights [B, T] of its gradient, those of p_grad."""
  weights = means.token_weights(
    jax.lax.stop_gradient(x), mask, jax.lax.stop_gradient(_or(p_grad, p))
  )
  if p_grad is None:
    return means.log_power_mean(x, mask, p), weights
  constant = jax.lax.stop_gradient(x)
  slope = jnp.sum(weights * (x - constant), axis=1)  # 0, but for its gradient
  return means.log_power_mean(constant, mask, p) + slope, weights


def _or(order, p):
  """[B] an order that may be left open."""
  if order is None:
    return p
  order = jnp.asarray(order, p.dtype)
  return jnp.broadcast_to(jnp.where(jnp.isfinite(order), order, p), p.shape)


def _clip_rows(log_mean, advantages, center, clip_eps):
  """[B] logs of the means, those that are stopped at their edge."""
  shift, position = center
  eps_low, eps_high = clip_eps
  low_edge, high_edge = clips.edges(eps_low, eps_high, log_mean.dtype)
  clipped = clips.one_sided(position, advantages, low_edge, high_edge)
  bound = jax.lax.stop_gradient(shift + clipped.values)
  return jnp.where(clipped.stopped, bound, log_mean), clipped

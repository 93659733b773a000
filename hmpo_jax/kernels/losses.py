"""Losses of importance ratios; each returns (loss [], metrics).

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

import chex
import jax
import jax.numpy as jnp

from hmpo_jax.kernels import clips
from hmpo_jax.kernels import loss_metrics
from hmpo_jax.kernels import means
from hmpo_jax.kernels import ratios

CLIPS = ('sequence', 'token', 'token_log')

Scalar = jax.Array | float
Result = tuple[jax.Array, dict[str, jax.Array]]


def power_mean_loss(logprobs: jax.Array,
                    old_logprobs: jax.Array,
                    advantages: jax.Array,
                    mask: jax.Array,
                    *,
                    p: Scalar,
                    clip_eps_low: Scalar,
                    clip_eps_high: Scalar,
                    clip: str = 'sequence',
                    clip_center: str = 'one',
                    p_clip: Scalar | None = None,
                    p_grad: Scalar | None = None,
                    dual_clip: Scalar = math.inf,
                    aggregation: str = 'sequence-mean-token-mean',
                    length_scale: Scalar = 1.,
                    log_ratio_max: Scalar = 20.) -> Result:
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
  if clip == 'sequence':
    log_mean, weights = _mean(ratio.x, mask, p, p_grad)
    position = clips.center(ratio.x, mask, _or(p_clip, p), clip_center)
    log_value, clipped = _clip_rows(log_mean, advantages, position,
                                    clip_eps_low, clip_eps_high)
  else:
    if clip_center != 'one' or p_clip is not None:
      raise ValueError(f'{clip_center=}, {p_clip=}: must be one and None with '
                       f'{clip=}, which stops tokens')
    clipped = clip_tokens(clip, ratio.x, advantages, clip_eps_low,
                          clip_eps_high)
    log_value, weights = _mean(clipped.values, mask, p, p_grad)
    log_mean, weights = log_value, jnp.where(clipped.stopped, 0, weights)
  objective, dual = _objective(log_value, advantages, dual_clip)
  metrics = loss_metrics.of_loss(ratio, mask, advantages, jnp.exp(log_mean),
                                 weights, clipped, dual)
  metrics |= loss_metrics.of_order(ratio.x, mask, p)
  return -ratios.aggregate(objective, mask, aggregation, length_scale), metrics


def arithmetic_harmonic_loss(logprobs: jax.Array,
                             old_logprobs: jax.Array,
                             advantages: jax.Array,
                             mask: jax.Array,
                             *,
                             clip_eps_low: Scalar,
                             clip_eps_high: Scalar,
                             dual_clip: Scalar = math.inf,
                             aggregation: str = 'sequence-mean-token-mean',
                             length_scale: Scalar = 1.,
                             log_ratio_max: Scalar = 20.) -> Result:
  """sqrt(M_1 M_-1), the limit of the A-H iteration, clipped as a sequence.

  It is the geometric mean for two tokens only, see
  means.arithmetic_harmonic_limit. The arguments are those of the module.
  """
  ratio = ratios.log_ratio(logprobs, old_logprobs, mask, log_ratio_max)
  _, advantages = ratios.of_rows(advantages, mask)
  log_a, log_h = (means.log_power_mean(ratio.x, mask, p) for p in (1, -1))
  log_mean = means.arithmetic_harmonic_limit(log_a, log_h)
  weights_a, weights_h = (
      means.token_weights(ratio.x, mask, p) for p in (1, -1))
  position = jnp.zeros_like(log_mean), jax.lax.stop_gradient(log_mean)
  log_value, clipped = _clip_rows(log_mean, advantages, position, clip_eps_low,
                                  clip_eps_high)
  objective, dual = _objective(log_value, advantages, dual_clip)
  metrics = loss_metrics.of_loss(ratio, mask, advantages, jnp.exp(log_mean),
                                 (weights_a + weights_h) / 2, clipped, dual)
  return -ratios.aggregate(objective, mask, aggregation, length_scale), metrics


def gspo_token_loss(logprobs: jax.Array,
                    old_logprobs: jax.Array,
                    advantages: jax.Array,
                    mask: jax.Array,
                    *,
                    clip_eps_low: Scalar,
                    clip_eps_high: Scalar,
                    dual_clip: Scalar = math.inf,
                    aggregation: str = 'sequence-mean-token-mean',
                    length_scale: Scalar = 1.,
                    log_ratio_max: Scalar = 20.) -> Result:
  """GSPO with an advantage for each token, [B, T] or [B].

    J_it = min(s_it A_it, clip(s_it, 1 - eps_low, 1 + eps_high) A_it),
    s_it = sg(M_0,i) r_it / sg(r_it)

  with sg the stop-gradient: eq. 13 and 14 of https://arxiv.org/abs/2507.18071.
  Equal to GSPO where the advantage is the same for all tokens of a row.
  """
  ratio = ratios.log_ratio(logprobs, old_logprobs, mask, log_ratio_max)
  if advantages.ndim == 1:
    chex.assert_shape(advantages, mask.shape[:1])
    advantages = jnp.broadcast_to(advantages[:, None], mask.shape)
  chex.assert_equal_shape([advantages, mask])
  chex.assert_type(advantages, float)
  advantages = jax.lax.stop_gradient(jnp.where(mask, advantages, 0))
  advantages = advantages.astype(ratio.x.dtype)
  constant = jax.lax.stop_gradient(ratio.x)
  log_mean = means.log_power_mean(constant, mask, 0.)
  return _token_loss(
      ratio,
      mask,
      advantages,
      log_mean[:, None] + (ratio.x - constant),
      jnp.abs(advantages), (clip_eps_low, clip_eps_high),
      dual_clip,
      aggregation,
      length_scale,
      row_ratio=jnp.exp(log_mean))


def grpo_loss(logprobs: jax.Array,
              old_logprobs: jax.Array,
              advantages: jax.Array,
              mask: jax.Array,
              *,
              clip_eps_low: Scalar,
              clip_eps_high: Scalar,
              dual_clip: Scalar = math.inf,
              aggregation: str = 'sequence-mean-token-mean',
              length_scale: Scalar = 1.,
              log_ratio_max: Scalar = 20.) -> Result:
  """Every token's ratio clipped by itself.

    J_it = min(r_it A_i, clip(r_it, 1 - eps_low, 1 + eps_high) A_i)

  "DeepSeekMath" by Shao et al. (https://arxiv.org/abs/2402.03300), eq. 3; its
  KL term is kl.kl_penalty. DAPO (https://arxiv.org/abs/2503.14476), BNPO and Dr.
  GRPO (https://arxiv.org/abs/2503.20783) differ in the aggregation, see the
  module, which has the arguments too.
  """
  ratio = ratios.log_ratio(logprobs, old_logprobs, mask, log_ratio_max)
  _, advantages = ratios.of_rows(advantages, mask)
  return _token_loss(ratio, mask, advantages, ratio.x, jnp.exp(ratio.x),
                     (clip_eps_low, clip_eps_high), dual_clip, aggregation,
                     length_scale)


def cispo_loss(logprobs: jax.Array,
               old_logprobs: jax.Array,
               advantages: jax.Array,
               mask: jax.Array,
               *,
               clip_eps_low: Scalar,
               clip_eps_high: Scalar,
               aggregation: str = 'token-mean',
               length_scale: Scalar = 1.,
               log_ratio_max: Scalar = 20.) -> Result:
  """The clipped ratio as a weight: no token loses its gradient.

    J_it = sg(clip(r_it, 1 - eps_low, 1 + eps_high)) A_i log pi_it

  "MiniMax-M1" (https://arxiv.org/abs/2506.13585), which sets no lower bound:
  clip_eps_low = 1. TRL's cap min(r, c) is that with clip_eps_high = c - 1. Both
  sides bind for either sign of A. The arguments are those of the module.
  """
  ratio = ratios.log_ratio(logprobs, old_logprobs, mask, log_ratio_max)
  _, advantages = ratios.of_rows(advantages, mask)
  low_edge, high_edge = clips.edges(clip_eps_low, clip_eps_high, ratio.x.dtype)
  x = jax.lax.stop_gradient(ratio.x)
  weight = jnp.exp(jnp.clip(x, low_edge, high_edge))
  bound = clips.Clipped(x, x < low_edge, x > high_edge)
  return _weighted_loss(ratio, mask, advantages, weight, bound, aggregation,
                        length_scale)


def reinforce_loss(logprobs: jax.Array,
                   old_logprobs: jax.Array,
                   advantages: jax.Array,
                   mask: jax.Array,
                   *,
                   aggregation: str = 'sequence-mean-token-mean',
                   length_scale: Scalar = 1.,
                   log_ratio_max: Scalar = 20.) -> Result:
  """J_it = A_i log pi_it: no ratio, the control of all the others.

  Williams, "Simple statistical gradient-following algorithms" (1992). The old
  log-probabilities are used for metrics, and for tokens that are clamped.
  """
  ratio = ratios.log_ratio(logprobs, old_logprobs, mask, log_ratio_max)
  _, advantages = ratios.of_rows(advantages, mask)
  return _weighted_loss(ratio, mask, advantages, jnp.ones_like(ratio.x),
                        _not_clipped(ratio.x), aggregation, length_scale)


def sapo_loss(logprobs: jax.Array,
              old_logprobs: jax.Array,
              advantages: jax.Array,
              mask: jax.Array,
              *,
              tau_positive: Scalar = 1.,
              tau_negative: Scalar = 1.05,
              aggregation: str = 'sequence-mean-token-mean',
              length_scale: Scalar = 1.,
              log_ratio_max: Scalar = 20.) -> Result:
  """A soft gate for a clip.

    J_it = 4 / tau sigmoid(tau (r_it - 1)) A_i

  with tau_positive where A > 0, else tau_negative: "Soft Adaptive Policy
  Optimization" (https://arxiv.org/abs/2511.20347). Where r = 1 its slope is 1.
  The other arguments are those of the module.
  """
  ratio = ratios.log_ratio(logprobs, old_logprobs, mask, log_ratio_max)
  _, advantages = ratios.of_rows(advantages, mask)
  tau = jnp.where(advantages > 0, tau_positive, tau_negative)[:, None]
  tau = jax.lax.stop_gradient(tau.astype(ratio.x.dtype))
  r = jnp.exp(ratio.x)
  gate = jax.nn.sigmoid(tau * (r - 1))
  objective = 4 / tau * gate * advantages[:, None]
  # sech^2(z / 2) = 4 sigmoid(z) (1 - sigmoid(z)).
  clipped = _not_clipped(ratio.x)
  metrics = loss_metrics.of_loss(ratio, mask, advantages,
                                 ratios.token_mean(r, mask),
                                 r * 4 * gate * jax.nn.sigmoid(-tau * (r - 1)),
                                 clipped, clipped.low)
  return -ratios.aggregate(
      ratios.token_mean(objective, mask), mask, aggregation,
      length_scale), metrics


LOSSES: dict[str, Callable[..., Result]] = {
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


def clip_tokens(clip: str, log_ratio: jax.Array, advantages: jax.Array,
                clip_eps_low: Scalar, clip_eps_high: Scalar) -> clips.Clipped:
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
        for edge in (-clip_eps_low, clip_eps_high))
  else:
    low_edge, high_edge = clips.edges(clip_eps_low, clip_eps_high,
                                      log_ratio.dtype)
  return clips.one_sided(log_ratio, advantages[:, None], low_edge, high_edge)


def _mean(x, mask, p, p_grad):
  """[B] log M_p, and the weights [B, T] of its gradient, those of p_grad."""
  weights = means.token_weights(
      jax.lax.stop_gradient(x), mask, jax.lax.stop_gradient(_or(p_grad, p)))
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


def _clip_rows(log_mean, advantages, center, clip_eps_low, clip_eps_high):
  """[B] logs of the means, those that are stopped at their edge."""
  shift, position = center
  clipped = clips.one_sided(
      position, advantages,
      *clips.edges(clip_eps_low, clip_eps_high, log_mean.dtype))
  bound = jax.lax.stop_gradient(shift + clipped.values)
  return jnp.where(clipped.stopped, bound, log_mean), clipped


def _objective(log_value, advantages, dual_clip):
  """exp(log_value) A, at least dual_clip A where A < 0; where that binds."""
  top = jax.lax.stop_gradient(jnp.log(jnp.asarray(dual_clip, log_value.dtype)))
  dual = (advantages < 0) & (log_value > top)
  return jnp.exp(jnp.where(dual, top, log_value)) * advantages, dual


def _token_loss(ratio,
                mask,
                advantages,
                log_value,
                coefficients,
                clip_eps,
                dual_clip,
                aggregation,
                length_scale,
                row_ratio=None):
  """Loss of tokens that are clipped one by one; advantages [B] or [B, T]."""
  of_tokens = advantages[:, None] if advantages.ndim == 1 else advantages
  low_edge, high_edge = clips.edges(clip_eps[0], clip_eps[1], log_value.dtype)
  clipped = clips.one_sided(log_value, of_tokens, low_edge, high_edge)
  objective, dual = _objective(clipped.values, of_tokens, dual_clip)
  if row_ratio is None:
    row_ratio = ratios.token_mean(jnp.exp(log_value), mask)
  metrics = loss_metrics.of_loss(
      ratio, mask, advantages, row_ratio,
      jnp.where(clipped.stopped | dual, 0, coefficients), clipped, dual)
  return -ratios.aggregate(
      ratios.token_mean(objective, mask), mask, aggregation,
      length_scale), metrics


def _weighted_loss(ratio, mask, advantages, weight, bound, aggregation,
                   length_scale):
  """Loss of log-probabilities with constant weights; `bound` stops none."""
  objective = weight * advantages[:, None] * ratio.logprobs
  metrics = loss_metrics.of_loss(ratio, mask, advantages,
                                 ratios.token_mean(jnp.exp(ratio.x), mask),
                                 weight, _not_clipped(ratio.x),
                                 jnp.zeros_like(bound.low))
  rows = jnp.any(mask, axis=1)
  for side in ('low', 'high'):
    metrics[f'clip/{side}_frac'] = ratios.row_mean(
        ratios.token_mean(getattr(bound, side), mask), rows)
  return -ratios.aggregate(
      ratios.token_mean(objective, mask), mask, aggregation,
      length_scale), metrics


def _not_clipped(x):
  nothing = jnp.zeros(x.shape, bool)
  return clips.Clipped(x, nothing, nothing)

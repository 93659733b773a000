"""Divergence of a policy from an anchor, estimated from sampled tokens.

For a token y that pi sampled, with d = log pi_ref(y) - log pi(y):

  k1 = -d,  abs = |d|,  k2 = d^2 / 2,  k3 = e^d - 1 - d,

of which k1 and k3 have the mean KL(pi || pi_ref). As losses they descend
something else, the mean of d/d log pi(y) times the gradient of log pi(y):

        d/d log pi  expected gradient of     verl            TRL   tunix
  k1    1           nothing: it is 0         kl, k1                kl
  abs   -sign d     sum_y |pi - pi_ref|      abs
  k2    -d          KL(pi || pi_ref)         mse, k2               mse_kl
  k3    1 - e^d     KL(pi_ref || pi)         low_var_kl, k3  beta  low_var_kl
  k3+   -d          KL(pi || pi_ref)         k3+

k3+ has the value of k3 and the gradient of k2. In a reward, where the policy
gradient multiplies it by the gradient of log pi, it is k1 whose expected
gradient is that of KL(pi || pi_ref), and k3+ is k3. See "Approximating KL
Divergence" by Schulman (http://joschu.net/blog/kl-approx.html).

Beyond |d| = 10 nats every estimate goes on along its tangent, so that one token
pulls by at most e^10 - 1 = 2.2e4, finite in any sum or square of float32, and
never less than at the bound. As E_pi[e^d] <= 1, a token of pi has d > 10 with a
chance of at most e^-10: what the bound takes away on-policy, at most 1 of the
mean slope, comes from single tokens. Beyond 1e4 nats, an infinite gap among
them, values stay what they are at 1e4 while the slope goes on. A token that the
policy rules out (log pi = -inf) has no gradient, and no gap either if the
anchor rules it out too.
"""

import jax
import jax.numpy as jnp

from hmpo_jax.kernels import checks
from hmpo_jax.kernels import precision
from hmpo_jax.kernels import ratios

LOSS_ESTIMATORS = ('abs', 'k2', 'k3', 'k3+')
REWARD_ESTIMATORS = ('k1', 'abs', 'k2', 'k3')

# In nats: where the tangents start, and where values end.
_BOUND = 10.0
_REACH = 1e4


def kl_penalty(
  logprobs: jax.Array,
  ref_logprobs: jax.Array,
  mask: jax.Array,
  *,
  estimator: str,
  old_logprobs: jax.Array | None = None,
  log_ratio_max: jax.Array | float = 20.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Estimate of the divergence from pi_ref as a loss, mean over rows.

  With old_logprobs every token weighs r_t = pi / pi_old, a constant to the
  gradient: values and gradients that pi_old sampled have the means of the table
  above. Where peers let the gradient through r_t (DeepSeek-V3.2,
  https://arxiv.org/abs/2512.02556, eq. 7, TRL's use_bias_correction_kl), the
  derivative of r_t k3 is -r_t d: that is k3+ here, in value and gradient.

  Args:
    logprobs: [B, T] under the policy that learns, in nats.
    ref_logprobs: [B, T] under the anchor; no gradient.
    mask: [B, T] bool, true on the tokens that count.
    estimator: one of LOSS_ESTIMATORS.
    old_logprobs: [B, T] under the policy that sampled, or None: it is the one
      that learns. Corrects each token, not the prefix that it follows.
    log_ratio_max: [] bound on |log r_t|, in nats.

  Returns:
    [] mean over rows with tokens of the mean over their tokens, in nats, and
    metrics: the fraction of tokens beyond the bound or ruled out twice.

  Raises:
    ValueError: k1, which has no expected gradient, or an unknown estimator.
  """
  if estimator == 'k1':
    raise ValueError(
      f'{estimator=}: its expected gradient is 0, so as a loss it holds '
      'nothing; take k2 or k3+ to descend KL(pi || pi_ref), k3 to descend '
      'KL(pi_ref || pi), or put it in the reward by kl_in_reward'
    )
  if estimator not in LOSS_ESTIMATORS:
    raise ValueError(f'{estimator=}: must be abs, k2, k3 or k3+')
  gap, metrics = _gap(logprobs, ref_logprobs, mask)
  values = _estimate(gap, estimator)
  if old_logprobs is not None:
    ratio = ratios.log_ratio(logprobs, old_logprobs, mask, log_ratio_max)
    values *= jax.lax.stop_gradient(jnp.exp(ratio.x))
  return _mean(values, mask), metrics


def kl_in_reward(
  logprobs: jax.Array,
  ref_logprobs: jax.Array,
  mask: jax.Array,
  *,
  estimator: str,
) -> jax.Array:
  """Estimates summed over each response, to subtract from its reward.

  Args:
    logprobs: [B, T] under the policy that sampled, in nats.
    ref_logprobs: [B, T] under the anchor.
    mask: [B, T] bool, true on the tokens that count.
    estimator: one of REWARD_ESTIMATORS; of these k1 is without bias.

  Returns:
    [B] sums, in nats, 0 for a row without tokens; no gradient.

  Raises:
    ValueError: unknown estimator.
  """
  if estimator not in REWARD_ESTIMATORS:
    raise ValueError(f'{estimator=}: must be k1, abs, k2 or k3')
  gap, _ = _gap(logprobs, ref_logprobs, mask)
  total = jnp.sum(jnp.where(mask, _estimate(gap, estimator), 0), axis=1)
  return jax.lax.stop_gradient(total)


def kl_metrics(
  logprobs: jax.Array, old_logprobs: jax.Array, mask: jax.Array
) -> dict[str, jax.Array]:
  """Estimates of KL(pi_old || pi), how far the policy has left its sampler.

  Args:
    logprobs: [B, T] under the policy that learns, in nats.
    old_logprobs: [B, T] under the policy that sampled.
    mask: [B, T] bool, true on the tokens that count.

  Returns:
    [] means over rows with tokens of the means over their tokens, in nats, by
    k1, which may be negative, and k3, which may not; no gradient.
  """
  gap, _ = _gap(old_logprobs, logprobs, mask)
  return jax.lax.stop_gradient(
    {
      f'kl_old/{estimator}': _mean(_estimate(gap, estimator), mask)
      for estimator in ('k1', 'k3')
    }
  )


def _gap(logprobs, ref_logprobs, mask):
  """[B, T] d of the tokens, 0 off the mask, and how many of them are wide."""
  checks.ranks(2, logprobs=logprobs, ref_logprobs=ref_logprobs, mask=mask)
  checks.same_shape(logprobs=logprobs, ref_logprobs=ref_logprobs, mask=mask)
  checks.dtypes(bool, mask=mask)
  dtype = precision.dtype_of(logprobs)
  new, ref = (
    jnp.where(mask, x, 0).astype(dtype) for x in (logprobs, ref_logprobs)
  )
  ruled_out = jnp.isneginf(new) & jnp.isneginf(ref)
  gap = jnp.where(ruled_out, 0, jnp.clip(ref - new, -_REACH, _REACH))
  is_wide = ruled_out | (jnp.abs(gap) > _BOUND)
  # Of value 0: the gradient passes the clip, but does not reach infinity.
  reachable = jnp.where(jnp.isinf(new), 0, new)
  slope = reachable - jax.lax.stop_gradient(reachable)
  metrics = {
    'kl/wide_gap_frac': jnp.sum(is_wide) / jnp.maximum(jnp.sum(mask), 1)
  }
  return jax.lax.stop_gradient(gap) - slope, metrics


def _estimate(gap, estimator):
  """The estimator at each gap, along its tangent beyond +-_BOUND."""
  if estimator == 'k3+':
    descended = _estimate(gap, 'k2')
    reported = jax.lax.stop_gradient(_estimate(gap, 'k3'))
    return reported + (descended - jax.lax.stop_gradient(descended))
  near = jnp.clip(gap, -_BOUND, _BOUND)
  value, slope = jax.jvp(_ESTIMATES[estimator], (near,), (jnp.ones_like(near),))
  return value + slope * (gap - near)


@jax.custom_jvp
def _k3(d):
  """e^d - 1 - d, by its series where the difference would lose its digits."""
  near = jnp.abs(d) < jnp.finfo(d.dtype).eps ** 0.2
  small = jnp.where(near, d, 0)
  series = small**2 / 2 * (1 + small / 3 * (1 + small / 4 * (1 + small / 5)))
  return jnp.where(near, series, jnp.expm1(d) - d)


_k3.defjvps(lambda d_dot, _, d: jnp.expm1(d) * d_dot)

_ESTIMATES: dict = {
  'k1': lambda d: -d,
  'abs': lambda d: d * jnp.sign(d),  # unlike jnp.abs, of slope 0 at 0
  'k2': lambda d: d**2 / 2,
  'k3': _k3,
}


def _mean(values, mask):
  """[] mean over rows with tokens of the means over their tokens."""
  return ratios.row_mean(ratios.token_mean(values, mask), jnp.any(mask, axis=1))

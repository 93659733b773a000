"""A task so small that its policy gradient is known, and estimates of it.

Of V tokens and T positions all S = V^T responses are enumerated, so that

    J(theta) = sum_y pi_theta(y) R(y)

and its gradient are sums, not estimates. Against this truth stands what an
update does: responses are drawn from pi_old, and the gradient of a loss of
kernels/losses.py is taken at a theta that has moved away. See "Monte Carlo
Gradient Estimation in Machine Learning" by Mohamed et al.
(https://arxiv.org/abs/1906.10652) for bias and variance of such estimates.

The policy is a table: theta [T, V, V] holds logits by position, previous token
and token. Before the first position the previous token counts as 0.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import itertools
from typing import Any
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from hmpo_jax.kernels import advantages as advantages_lib

REWARDS = ('share', 'exact')
DIRECTIONS = ('random', 'learned')

# Of a loss: logprobs [B, T], old_logprobs [B, T], advantages [B], mask [B, T]
# and p [], as keyword; the loss [] and metrics.
Loss = Callable[..., tuple[jax.Array, dict[str, jax.Array]]]

_MAX_RESPONSES = 2**16
# Of the logits, and added to that of token 0: as after a warm start some 0.7 of
# the tokens are right, and of 8 tokens all in one response of 20.
_SCALE, _HEAD_START = 0.5, 1.5
_NUM_STEPS = 24  # each about halves the error of log sigma


class Task(NamedTuple):
  """All responses and what they earn."""

  responses: jax.Array  # [S, T] int32
  rewards: jax.Array  # [S] float32, from 0 to 1


class Scene(NamedTuple):
  """A policy, the direction in which it moves, and what it drew before."""

  theta_old: jax.Array  # [T, V, V]
  direction: jax.Array  # [T, V, V], of any length
  drawn: jax.Array  # [M, G] int32, numbers of responses


class Moments(NamedTuple):
  """What a sample of gradients g of one group each tells about E g.

  u is the unit vector along the true gradient. Squares of means are less what
  the sampling of the mean adds to them, so that they may be below 0.
  """

  along: jax.Array  # E g . u
  along_square: jax.Array  # (E g . u)^2
  mean_square: jax.Array  # |E g|^2
  variance: jax.Array  # tr Cov g


class Quality(NamedTuple):
  """How close c g comes to the true gradient t, with c >= 0 the best factor."""

  mse: np.ndarray  # E |c g - t|^2 / |t|^2, from 0 to 1
  bias_square: np.ndarray  # the same with infinitely many prompts
  variance: np.ndarray  # the rest, mse - bias_square
  noise: np.ndarray  # tr Cov g / |E g|^2, whatever t is
  slope: np.ndarray  # E g . t / |t|^2, without c: 1 for an unbiased estimate


def enumerate_task(vocab_size: int, length: int, reward: str = 'share') -> Task:
  """The task of writing token 0 throughout.

  Args:
    vocab_size: V, at least 2.
    length: T, at least 1; V^T is at most 65536.
    reward: 'share' of the tokens that are 0, or 'exact': 1 where all are.

  Raises:
    ValueError: sizes or reward are none of these.
  """
  if vocab_size < 2 or length < 1 or vocab_size**length > _MAX_RESPONSES:
    raise ValueError(
      f'{vocab_size=}, {length=}: must be at least 2 and 1, and '
      f'vocab_size**length at most {_MAX_RESPONSES}'
    )
  if reward not in REWARDS:
    raise ValueError(f'{reward=}: must be one of {", ".join(REWARDS)}')
  responses = np.array(
    list(itertools.product(range(vocab_size), repeat=length)), np.int32
  )
  hits = responses == 0
  rewards = hits.all(axis=1) if reward == 'exact' else hits.mean(axis=1)
  return Task(jnp.asarray(responses), jnp.asarray(rewards, jnp.float32))


def token_logprobs(theta: jax.Array, responses: jax.Array) -> jax.Array:
  """[B, T] nats of responses [B, T] under the policy theta [T, V, V]."""
  length, vocab_size, _ = theta.shape
  chex.assert_shape(responses, (None, length))
  previous = jnp.pad(responses[:, :-1], ((0, 0), (1, 0)))
  # A product: the gradient of a look-up, a scatter, is slow on CPU.
  chosen = jax.nn.one_hot(previous * vocab_size + responses, vocab_size**2)
  table = jax.nn.log_softmax(theta).reshape(length, vocab_size**2)
  # Elsewhere products of float32 may be narrower.
  return jnp.einsum('btk,tk->bt', chosen, table, precision='highest')


def expected_reward(theta: jax.Array, task: Task) -> jax.Array:
  """[] J(theta), the sum over all responses; differentiable."""
  logprobs = jnp.sum(token_logprobs(theta, task.responses), axis=1)
  # Around a middle the terms of the gradient are smaller, and so its rounding.
  middle = jnp.mean(task.rewards)
  return middle + jnp.sum(jnp.exp(logprobs) * (task.rewards - middle))


def policy_gradient(theta: jax.Array, task: Task) -> jax.Array:
  """[T, V, V] exact gradient of `expected_reward`, to float32 rounding."""
  return jax.grad(expected_reward)(theta, task)


def spread(theta: jax.Array, theta_old: jax.Array, task: Task) -> jax.Array:
  """[] sigma: root mean within-row variance of the log-ratios, nats.

  The mean is that over the responses of pi_old, exactly; the variance that of
  the tokens of a response, with divisor T. 0 where T = 1.
  """
  old = token_logprobs(theta_old, task.responses)
  log_ratio = token_logprobs(theta, task.responses) - old
  weights = jnp.exp(jnp.sum(old, axis=1))
  return jnp.sqrt(jnp.sum(weights * jnp.var(log_ratio, axis=1)))


def moved(
  theta_old: jax.Array,
  direction: jax.Array,
  sigma: jax.Array | float,
  task: Task,
) -> jax.Array:
  """The policy along a direction [T, V, V] whose `spread` is sigma, nats.

  Args:
    theta_old: [T, V, V] where the line starts.
    direction: [T, V, V] any length; only one that spreads log-ratios serves.
    sigma: [] from 0, which returns theta_old, to about 1.
    task: with two positions or more, else no policy spreads.

  Returns:
    [T, V, V], with NaN where the direction spreads nothing.

  Raises:
    ValueError: a task of one position.
  """
  if task.responses.shape[1] < 2:
    raise ValueError('a response of 1 token has no spread: move theta yourself')

  def step(_, size):
    # Sigma grows about linearly; the root keeps the steps from overshooting.
    now = spread(theta_old + size * direction, theta_old, task)
    return size * jnp.sqrt(sigma / now)

  # Far enough for rounding to be small, near enough to be linear.
  unit = 0.1 / jnp.sqrt(jnp.mean(direction**2))
  start = unit * sigma / spread(theta_old + unit * direction, theta_old, task)
  size = jax.lax.fori_loop(0, _NUM_STEPS, step, start)
  return theta_old + jnp.where(sigma > 0, size, 0) * direction


def sample(
  key: jax.Array, theta_old: jax.Array, task: Task, shape: tuple[int, ...]
) -> jax.Array:
  """Numbers of responses that pi_old draws, int32 of a shape; key consumed."""
  logprobs = jnp.sum(token_logprobs(theta_old, task.responses), axis=1)
  return jax.random.choice(
    key, len(task.rewards), shape, p=jnp.exp(logprobs)
  ).astype(jnp.int32)


def group_gradients(
  loss: Loss,
  theta: jax.Array,
  theta_old: jax.Array,
  responses: jax.Array,
  advantages: jax.Array,
) -> jax.Array:
  """What the loss makes of each of M groups, as gradients that ascend.

  A loss is a mean over rows, so that the gradient of a batch of N prompts is
  the mean of N of these.

  Args:
    loss: with its options bound, see kernels/losses.py.
    theta: [T, V, V] where the gradients are taken.
    theta_old: [T, V, V] that sampled.
    responses: [M, G, T] int32.
    advantages: [M, G].

  Returns:
    [M, T, V, V].
  """

  def of_group(responses, advantages):
    old = token_logprobs(theta_old, responses)
    mask = jnp.ones(responses.shape, bool)
    return jax.grad(
      lambda theta: (
        -loss(token_logprobs(theta, responses), old, advantages, mask)[0]
      )
    )(theta)

  return jax.vmap(of_group)(responses, advantages)


def product_loss(
  logprobs: jax.Array,
  old_logprobs: jax.Array,
  advantages: jax.Array,
  mask: jax.Array,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The ratio of the whole response, prod_t r_t: importance sampling.

  With advantages R - b whose b does not depend on the response its gradient is
  the policy gradient on average, wherever theta is: the others' reference.
  """
  log_ratio = jnp.where(mask, logprobs - old_logprobs, 0)
  return -jnp.mean(jnp.exp(jnp.sum(log_ratio, axis=1)) * advantages), {}


def moments_of(gradients: jax.Array, truth: jax.Array) -> Moments:
  """Moments [] of gradients [M, ...] of M >= 2 groups, truth [...] not 0.

  Raises:
    ValueError: fewer than two groups, which have no variance.
  """
  count = len(gradients)
  if count < 2:
    raise ValueError(f'{count} groups: must be at least 2')
  truth = truth.ravel()
  gradients = gradients.reshape(count, -1)
  unit = truth / jnp.linalg.norm(truth)
  along = jnp.matmul(gradients, unit, precision='highest')
  mean = jnp.mean(gradients, axis=0)
  variance = jnp.sum((gradients - mean) ** 2) / (count - 1)
  mean_along = jnp.mean(along)
  return Moments(
    along=mean_along,
    along_square=mean_along**2 - jnp.var(along, ddof=1) / count,
    mean_square=jnp.sum(mean**2) - variance / count,
    variance=variance,
  )


def quality(
  moments: Moments, truth_norm: np.ndarray | float, num_prompts: int
) -> Quality:
  """How good the mean of num_prompts groups is, after the best common factor.

  Advantages are scaled, a mean over tokens is 1 / T of a sum, and a learning
  rate is tuned: the length of an estimate g says nothing. With the best c >= 0,

    mse = min_c E |c g - t|^2 / |t|^2 = 1 - (E g . t)^2 / (|t|^2 E |g|^2),

  which tends to 1 - cos(E g, t)^2 as the prompts become many; 1 where g points
  away from t. An estimate that is t but for a factor and noise has no bias.

  Args:
    moments: of groups.
    truth_norm: |t|, broadcasts with the moments.
    num_prompts: N, the groups in one batch.

  Returns:
    Arrays of the moments' shape. Of few samples a bias may be below 0; all that
    gradients of 0 say is an mse of 1.
  """
  along, along_square, mean_square, variance = map(np.asarray, moments)
  variance = variance / num_prompts
  forward = np.where(along > 0, along_square, 0)
  mse = 1 - _ratio(forward, mean_square + variance)
  bias_square = 1 - _ratio(forward, mean_square)
  return Quality(
    mse,
    bias_square,
    mse - bias_square,
    _ratio(variance, mean_square),
    along / truth_norm,
  )


def _ratio(value, divisor):
  """value / divisor, 0 where the divisor is not positive."""
  positive = divisor > 0
  return np.where(positive, value / np.where(positive, divisor, 1), 0)


def draw_scene(
  key: jax.Array, task: Task, direction: str, shape: tuple[int, ...]
) -> Scene:
  """A random policy, where it will move, and what it draws.

  The policy has normal logits, and token 0 a head start.

  Args:
    key: consumed.
    task: from `enumerate_task`.
    direction: 'random', normal; or 'learned', along the exact gradient.
    shape: of the draws, (M, G).

  Raises:
    ValueError: unknown direction.
  """
  if direction not in DIRECTIONS:
    raise ValueError(f'{direction=}: must be one of {", ".join(DIRECTIONS)}')
  policy_key, direction_key, sample_key = jax.random.split(key, 3)
  length = task.responses.shape[1]
  vocab_size = round(len(task.rewards) ** (1 / length))
  size = length, vocab_size, vocab_size
  theta_old = _SCALE * jax.random.normal(policy_key, size)
  theta_old = theta_old.at[..., 0].add(_HEAD_START)
  if direction == 'random':
    way = jax.random.normal(direction_key, size)
  else:
    way = policy_gradient(theta_old, task)
  return Scene(theta_old, way, sample(sample_key, theta_old, task, shape))


def measure(
  scene: Scene,
  task: Task,
  sigmas: jax.Array,
  orders: jax.Array,
  *,
  loss: Callable[..., Loss],
  advantages: Sequence[Mapping[str, Any]],
) -> tuple[Moments, jax.Array]:
  """Moments of a loss's gradients where the policy of a scene has moved.

  All settings see the same responses: differences between them are paired.

  Args:
    scene: with M groups of G responses.
    task: that of the scene.
    sigmas: [Q] spreads, nats, see `moved`; positive.
    orders: [P] handed to the loss one by one.
    loss: of p, returns a Loss.
    advantages: A sets of options of advantages.group_advantages.

  Returns:
    Moments of arrays [Q, A, P] and the lengths [Q] of the true gradients.
  """
  rewards = task.rewards[scene.drawn]
  responses = task.responses[scene.drawn]
  of_groups = jnp.stack(
    [
      advantages_lib.group_advantages(rewards, **options)[0]
      for options in advantages
    ]
  )
  numbers, orders = jnp.meshgrid(
    jnp.arange(len(advantages)), orders, indexing='ij'
  )

  def of_sigma(sigma):
    theta = moved(scene.theta_old, scene.direction, sigma, task)
    truth = policy_gradient(theta, task)

    def of_setting(setting):
      number, p = setting
      return moments_of(
        group_gradients(
          loss(p), theta, scene.theta_old, responses, of_groups[number]
        ),
        truth,
      )

    found = jax.lax.map(of_setting, (numbers.ravel(), orders.ravel()))
    found = jax.tree.map(lambda x: x.reshape(orders.shape), found)
    return found, jnp.linalg.norm(truth.ravel())

  return jax.lax.map(of_sigma, sigmas)

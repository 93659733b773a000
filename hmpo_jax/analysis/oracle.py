"""A task so small that its policy gradient is known, and estimates of it.

Of V tokens and T positions all S = V^T responses are enumerated, so that

    J(theta) = sum_y pi_theta(y) R(y)

and its gradient are sums, not estimates. Against this truth stands what an
update does: responses are drawn from pi_old, and the gradient of a loss of
kernels/losses.py is taken at a theta that has moved away; `estimates` tells how
near it comes.

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

from hmpo_jax.analysis import estimates
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
) -> tuple[estimates.Moments, jax.Array]:
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
      return estimates.moments_of(
        group_gradients(
          loss(p), theta, scene.theta_old, responses, of_groups[number]
        ),
        truth,
      )

    moments = jax.lax.map(of_setting, (numbers.ravel(), orders.ravel()))
    moments = jax.tree.map(lambda x: x.reshape(orders.shape), moments)
    return moments, jnp.linalg.norm(truth.ravel())

  return jax.lax.map(of_sigma, sigmas)

"""What a task is, and what all share: score, held-out split, baselines."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hmpo_jax import base

# One prompt in this many is held out of training and warm start.
_HELD_OUT_SHARE = 16
# The search for held-out prompts ends when so many rounds find no new one.
_IDLE_ROUNDS = 10
# Baselines that ignore their prompt and know the answers to all.
TEMPLATES = ('majority', 'modal')
# One draw in 4096 is of training at least, see held_out_prompts: that so many
# in a row are held out means that draws repeat, and the loop must end.
_MAX_REDRAWS = 2**16


class Task(NamedTuple):
  """A family of prompts, each with one right answer that a function gives.

  `draw` maps a key to a prompt [P] int32, padded on the left; `answer` maps it
  to the right response [T] int32, ended by `stop` and padded on the right, or
  to padding where no answers are known.
  """

  name: str
  vocab_size: int
  pad: int
  stop: int
  prompt_len: int
  response_len: int
  draw: Callable[[jax.Array], jax.Array]
  answer: Callable[[jax.Array], jax.Array]
  has_answers: bool = True


class Score(NamedTuple):
  """What a verifier says of responses; all [B] float32 in [0, 1]."""

  reward: jax.Array  # what is paid
  exact: jax.Array  # 1 where the response is the answer, else 0
  # Share of the answer's tokens that stand at their place; None where a
  # function on the host scores.
  share: jax.Array | None = None


def score(
  task: Task,
  prompts: jax.Array,
  tokens: jax.Array,
  mask: jax.Array,
  pays_exact: jax.Array | bool = False,
) -> Score:
  """Compares responses with the right answers, token by token.

  The stop token is one of the answer's tokens, so that the share is 1 exactly
  where the response is right and ends where it should.

  Args:
    task: gives the answers.
    prompts: [B, P] int32.
    tokens: [B, T] int32 responses.
    mask: [B, T] bool, true on the response including its stop token.
    pays_exact: [] whether the reward is exact match; else it is the share of
      right tokens.

  Returns:
    The Score of each response.
  """
  answers = jax.vmap(task.answer)(prompts)
  wanted = answers != task.pad
  right = wanted & mask & (tokens == answers)
  share = (jnp.sum(right, 1) / jnp.sum(wanted, 1)).astype(jnp.float32)
  exact = jnp.all(right == wanted, 1).astype(jnp.float32)
  return Score(jnp.where(pays_exact, exact, share), exact, share)


def is_held_out(prompt: jax.Array) -> jax.Array:
  """[] bool, by the FNV-1a hash of a prompt [P]; about one in 16.

  Another seed is no held-out set: on small tasks it overlaps the training
  prompts by 28 to 100 %. A hash of the prompt itself never does.
  """
  mix = lambda i, state: (
    (state ^ prompt[i].astype(jnp.uint32)) * jnp.uint32(16777619)
  )
  state = jax.lax.fori_loop(0, prompt.shape[0], mix, jnp.uint32(2166136261))
  return (state >> 8) % _HELD_OUT_SHARE == 0


def draw_training(task: Task, key: jax.Array) -> jax.Array:
  """A prompt [P] that is not held out; the key is consumed."""
  redraw = lambda state: (
    state[0] + 1,
    task.draw(jax.random.fold_in(key, state[0])),
  )
  goes_on = lambda state: is_held_out(state[1]) & (state[0] <= _MAX_REDRAWS)
  return jax.lax.while_loop(goes_on, redraw, redraw((0, None)))[1]


def held_out_prompts(task: Task, num: int) -> np.ndarray:
  """The first `num` different held-out prompts, the same in every run.

  Args:
    task: whose prompts to draw.
    num: how many.

  Returns:
    [num, P] int32.

  Raises:
    ValueError: if the task has too few different prompts, or draws none that is
      left for training.
  """

  @jax.jit
  def draw(round_):
    key = jax.random.fold_in(base.random_key(0), round_)
    prompts = jax.vmap(task.draw)(jax.random.split(key, 4096))
    return prompts, jax.vmap(is_held_out)(prompts)

  kept: dict[bytes, np.ndarray] = {}
  round_, idle = 0, 0
  while len(kept) < num and idle < _IDLE_ROUNDS:
    prompts, held_out = jax.device_get(draw(round_))
    if np.all(held_out):
      raise ValueError(
        f'task {task.name}: all of {len(prompts)} prompts that it drew are '
        'held out, by their hash, so that none is left for training: give '
        'more different prompts'
      )
    before = len(kept)
    for prompt in prompts[held_out]:
      kept.setdefault(prompt.tobytes(), prompt)
    idle = 0 if len(kept) > before else idle + 1
    round_ += 1
  if len(kept) >= num:
    return np.stack(list(kept.values())[:num])
  raise ValueError(
    f'task {task.name} has only {len(kept)} different held-out prompts, '
    f'config.eval.num_prompts = {num}: ask for fewer, or give longer or more '
    'prompts'
  )


def score_rollout(
  task: Task, rollout: base.Rollout, pays_exact: jax.Array | bool = False
) -> Score:
  """`score` of the responses of a rollout."""
  prompts, responses = jnp.split(rollout.tokens, [task.prompt_len], axis=1)
  return score(task, prompts, responses, rollout.mask, pays_exact)


def baselines(
  task: Task, prompts: jax.Array, judge: Callable[[base.Rollout], Score]
) -> dict[str, float]:
  """Rewards that need no skill, on prompts [M, P].

  Where answers are known there are two templates, the best responses that
  ignore their prompt: 'majority' gives at each place the commonest token of
  training answers (best where each right token is paid), 'modal' the commonest
  whole answer (best where only that is). 'random' draws every token evenly from
  the vocabulary. `judge` scores them; one of which it
  gives no number is left out.
  """
  result = {}
  for name, tokens in _unskilled(task, len(prompts)).items():
    is_stop = tokens == task.stop
    mask = jnp.cumsum(is_stop, 1) - is_stop == 0
    scores = judge(
      base.Rollout(
        tokens=jnp.concatenate([prompts, tokens], 1),
        valid=jnp.concatenate([prompts != task.pad, mask], 1),
        mask=mask,
        logprobs=jnp.zeros(mask.shape),
      )
    )
    if jnp.isnan(scores.reward).all():
      continue
    result[f'{name}_reward'] = float(jnp.nan_to_num(scores.reward).mean())
    result[f'{name}_exact'] = float(scores.exact.mean())
  return result


def _unskilled(task, num):
  """Responses [num, T] by the name of their baseline."""
  shape = (num, task.response_len)
  random = jax.random.randint(base.random_key(2), shape, 0, task.vocab_size)
  if not task.has_answers:
    return {'random': random}
  answers = jax.vmap(lambda key: task.answer(draw_training(task, key)))(
    jax.random.split(base.random_key(1), 4096)
  )
  counts = jax.nn.one_hot(answers, task.vocab_size).sum(0)
  whole, times = np.unique(np.asarray(answers), axis=0, return_counts=True)
  templates = jnp.argmax(counts, -1), jnp.asarray(whole[np.argmax(times)])
  return {
    name: jnp.broadcast_to(template, shape)
    for name, template in zip(TEMPLATES, templates)
  } | {'random': random}

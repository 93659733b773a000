"""Scores, the held-out split and baselines, on tasks of a few tokens."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from hmpo_jax import base
from hmpo_jax.tasks import digits
from hmpo_jax.tasks import task as task_lib

_PAD, _STOP = 0, 1

_SORT, _ADDITION = digits.sort(3), digits.addition(3)
_TASKS = (('sort', _SORT), ('addition', _ADDITION))
# The answer to a prompt of two tokens from 2 to 5 is the first of them.
_ECHO = task_lib.Task(
  name='echo',
  vocab_size=6,
  pad=_PAD,
  stop=_STOP,
  prompt_len=2,
  response_len=3,
  draw=lambda key: jax.random.randint(key, (2,), 2, 6),
  answer=lambda prompt: jnp.stack(
    [prompt[0], jnp.int32(_STOP), jnp.int32(_PAD)]
  ),
)

_score = jax.jit(task_lib.score, static_argnums=0)
_held_out = jax.jit(jax.vmap(task_lib.is_held_out))


def _hash_by_hand(prompt):
  """FNV-1a over whole tokens, in Python's integers."""
  state = 2166136261
  for token in prompt:
    state = (state ^ int(token)) * 16777619 % 2**32
  return state


@functools.partial(jax.jit, static_argnums=(0, 1))
def _draw(task, num, seed):
  """Prompts of training [num, P]."""
  draw = functools.partial(task_lib.draw_training, task)
  return jax.vmap(draw)(jax.random.split(jax.random.key(seed), num))


def _baselines(task, prompts):
  judge = jax.jit(functools.partial(task_lib.score_rollout, task))
  return task_lib.baselines(task, prompts, judge)


class GeneratorTest(absltest.TestCase):
  """No setting of JAX decides what is drawn, and each search ends."""

  def test_prompts_are_those_of_threefry_under_another_default(self):
    prompts = task_lib.held_out_prompts(_SORT, 8)
    before = getattr(jax.config, 'jax_default_prng_impl')
    self.addCleanup(jax.config.update, 'jax_default_prng_impl', before)
    jax.config.update('jax_default_prng_impl', 'rbg')
    np.testing.assert_array_equal(task_lib.held_out_prompts(_SORT, 8), prompts)
    self.assertEqual(
      base.random_key(0).dtype, jax.random.key(0, impl='threefry2x32').dtype
    )

  def test_a_task_that_draws_held_out_prompts_alone_is_refused(self):
    prompt = jnp.asarray(task_lib.held_out_prompts(_ECHO, 1)[0])
    task = _ECHO._replace(draw=lambda key: prompt)
    with self.assertRaisesRegex(ValueError, 'none is left for training'):
      task_lib.held_out_prompts(task, 1)
    # The search for one of training, which there is not, ends.
    np.testing.assert_array_equal(_draw(task, 1, 0)[0], prompt)


class ScoreTest(parameterized.TestCase):
  # The answer to 4 2 5 is 2 4 5 stop, with digits two above themselves.
  @parameterized.named_parameters(
    ('right', (4, 6, 7, _STOP), 4, 1, 1),
    ('one_digit_wrong', (4, 6, 8, _STOP), 4, 3 / 4, 0),
    ('two_swapped', (6, 4, 7, _STOP), 4, 2 / 4, 0),
    ('stops_early', (4, 6, _STOP, 7), 3, 2 / 4, 0),
    ('right_only_after_its_stop', (_STOP, 6, 7, _STOP), 1, 0, 0),
    ('right_but_without_stop', (4, 6, 7, 9), 4, 3 / 4, 0),
    ('all_wrong', (9, 9, 9, 9), 4, 0, 0),
  )
  def test_of_a_sort(self, response, length, reward, exact):
    score = _score(
      _SORT,
      jnp.array([[6, 4, 7, digits.EQUALS]]),
      jnp.array([response]),
      jnp.arange(4)[None] < length,
    )
    self.assertEqual((score.reward, score.exact), (reward, exact))
    self.assertEqual(
      (score.reward.dtype, score.exact.dtype), (jnp.float32, jnp.float32)
    )

  @parameterized.named_parameters(
    ('right', (4, 6, 7, _STOP), 1, 1), ('wrong', (4, 6, 8, _STOP), 3 / 4, 0)
  )
  def test_pays_what_it_is_asked_to(self, response, share, exact):
    for pays_exact, reward in ((False, share), (True, exact)):
      score = _score(
        _SORT,
        jnp.array([[6, 4, 7, digits.EQUALS]]),
        jnp.array([response]),
        jnp.ones((1, 4), bool),
        pays_exact,
      )
      self.assertEqual(
        (score.reward, score.exact, score.share), (reward, exact, share)
      )

  # The answer is 2 stop: two tokens of three places.
  @parameterized.named_parameters(
    ('right', (3, _STOP, _PAD), 2, 1, 1),
    ('whatever_follows_the_stop', (3, _STOP, 4), 2, 1, 1),
    ('digit_alone', (3, 4, _STOP), 3, 1 / 2, 0),
    ('padding_is_no_stop', (3, _PAD, _PAD), 3, 1 / 2, 0),
  )
  def test_of_an_answer_shorter_than_the_buffer(
    self, response, length, reward, exact
  ):
    score = _score(
      _ECHO,
      jnp.array([[3, 5]]),
      jnp.array([response]),
      jnp.arange(3)[None] < length,
    )
    self.assertEqual((score.reward, score.exact), (reward, exact))

  def test_of_a_rollout_is_that_of_its_responses(self):
    prompts, responses = jnp.array([[6, 4, 7, 13]]), jnp.array([[4, 6, 8, 1]])
    mask = jnp.ones((1, 4), bool)
    tokens = jnp.concatenate([prompts, responses], axis=1)
    sampled = base.Rollout(tokens, tokens != _PAD, mask, jnp.zeros((1, 4)))
    self.assertEqual(
      task_lib.score_rollout(_SORT, sampled),
      _score(_SORT, prompts, responses, mask),
    )

  @parameterized.named_parameters(*_TASKS)
  def test_of_anything_is_from_0_to_1_and_1_if_exact(self, task):
    prompts = _draw(task, 512, 0)
    answers = np.asarray(jax.jit(jax.vmap(task.answer))(prompts))
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, task.vocab_size, answers.shape, np.int32)
    # Half of the tokens are right ones, and every eighth row is right.
    tokens = np.where(rng.random(answers.shape) < 0.5, answers, tokens)
    tokens[::8] = answers[::8]
    lengths = rng.integers(0, task.response_len + 1, 512)
    lengths[::8] = task.response_len
    mask = np.arange(task.response_len) < lengths[:, None]
    score = _score(task, prompts, tokens, mask)
    self.assertTrue(np.all((score.reward >= 0) & (score.reward <= 1)))
    np.testing.assert_array_equal(score.exact, score.reward == 1)
    self.assertTrue(np.all(score.exact[::8] == 1))
    self.assertGreater(len(np.unique(score.reward)), 4)


class HeldOutTest(parameterized.TestCase):
  def test_is_the_hash_of_the_prompt_and_one_in_sixteen(self):
    keys = jax.random.split(jax.random.key(0), 16384)
    prompts = np.asarray(jax.vmap(digits.sort(6).draw)(keys))
    held_out = _held_out(prompts)
    by_hand = [(_hash_by_hand(prompt) >> 8) % 16 == 0 for prompt in prompts]
    np.testing.assert_array_equal(held_out, by_hand)
    # 1024 +- 31 of 16384 if the hash were a fair die.
    self.assertBetween(np.sum(held_out), 1024 - 4 * 31, 1024 + 4 * 31)

  @parameterized.named_parameters(*_TASKS)
  def test_never_is_a_prompt_of_training_and_always_one_of_the_set(self, task):
    training = np.asarray(_draw(task, 512, 0))
    kept = task_lib.held_out_prompts(task, 32)
    self.assertEqual((kept.shape, kept.dtype), ((32, task.prompt_len), 'int32'))
    np.testing.assert_array_equal(
      _held_out(np.concatenate([training, kept])), [False] * 512 + [True] * 32
    )
    self.assertLen(np.unique(kept, axis=0), 32)
    in_training = {prompt.tobytes() for prompt in training}
    self.assertGreater(len(in_training), 100)
    self.assertFalse(in_training & {prompt.tobytes() for prompt in kept})

  def test_set_is_the_same_in_every_call_and_grows_at_its_end(self):
    kept = task_lib.held_out_prompts(_SORT, 40)
    for num in (40, 8):
      np.testing.assert_array_equal(
        task_lib.held_out_prompts(_SORT, num), kept[:num]
      )

  def test_all_there_are_or_an_error_that_names_the_key(self):
    prompts = np.indices((4, 4)).reshape(2, 16).T + 2
    held_out = [(_hash_by_hand(prompt) >> 8) % 16 == 0 for prompt in prompts]
    count = sum(held_out)
    self.assertEqual(count, 1)
    np.testing.assert_array_equal(
      task_lib.held_out_prompts(_ECHO, count), prompts[held_out]
    )
    with self.assertRaisesRegex(
      ValueError,
      r'task echo has only 1 different held-out prompts, '
      r'config\.eval\.num_prompts = 2',
    ):
      task_lib.held_out_prompts(_ECHO, count + 1)


class DrawTrainingTest(absltest.TestCase):
  def test_key_decides(self):
    first, again, other = (_draw(_SORT, 512, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    self.assertGreater(len(np.unique(first, axis=0)), 300)
    self.assertFalse(np.array_equal(first, other))


class BaselinesTest(absltest.TestCase):
  def test_by_hand(self):
    # The answer is 3 stop to a quarter of the prompts and 4 stop to the others.
    task = _ECHO._replace(
      draw=lambda key: jax.random.randint(key, (2,), 0, 16),
      answer=lambda prompt: jnp.stack(
        [jnp.where(prompt[0] < 4, 3, 4), jnp.int32(_STOP), jnp.int32(_PAD)]
      ),
    )
    prompts = jnp.tile(jnp.arange(16)[:, None], (256, 2))
    result = _baselines(task, prompts)
    # 4 stop gets the stop alone in a quarter.
    for template in ('majority', 'modal'):
      self.assertEqual(result[f'{template}_reward'], (1 / 2 + 3) / 4)
      self.assertEqual(result[f'{template}_exact'], 3 / 4)
    # Of six tokens one is right; another than the stop must come before the
    # stop: 5/6 1/6. Within 4 standard errors of 4096 prompts.
    self.assertAlmostEqual(
      result['random_reward'], (1 / 6 + 5 / 36) / 2, delta=4 * 0.26 / 64
    )
    self.assertAlmostEqual(result['random_exact'], 1 / 36, delta=4 * 0.17 / 64)

  def test_the_commonest_answer_is_not_made_of_the_commonest_tokens(self):
    # Of 16 prompts 6 are answered 3 3, 5 are 4 3 and 5 are 4 4: the commonest
    # answer is 3 3, and 4 3 would earn less as a whole.
    rows = jnp.array([[3, 3]] * 6 + [[4, 3]] * 5 + [[4, 4]] * 5, jnp.int32)
    task = _ECHO._replace(
      draw=lambda key: jax.random.randint(key, (2,), 0, 16),
      response_len=2,
      answer=lambda prompt: rows[prompt[0]],
    )
    prompts = jnp.tile(jnp.arange(16)[:, None], (1, 2))
    result = _baselines(task, prompts)
    # 4 stands first in 10 of 16, 3 second in 11.
    self.assertEqual(result['majority_reward'], 21 / 32)
    self.assertEqual(result['majority_exact'], 5 / 16)
    self.assertEqual(result['modal_reward'], 17 / 32)
    self.assertEqual(result['modal_exact'], 6 / 16)

  def test_without_answers_there_is_no_template(self):
    task = _ECHO._replace(has_answers=False)
    self.assertEqual(
      set(_baselines(task, jnp.full((4096, 2), 3))),
      {'random_reward', 'random_exact'},
    )

  def test_of_a_sort_are_from_0_to_1(self):
    result = _baselines(_SORT, _draw(_SORT, 512, 0))
    self.assertEqual(
      set(result),
      {
        'majority_reward',
        'majority_exact',
        'modal_reward',
        'modal_exact',
        'random_reward',
        'random_exact',
      },
    )
    for name, value in result.items():
      self.assertIsInstance(value, float)
      self.assertBetween(value, 0, 1, name)
    self.assertGreater(result['majority_reward'], result['random_reward'])


if __name__ == '__main__':
  absltest.main()

"""Answers to sums and sorts, by hand and by Python's own integers."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from hmpo_jax.tasks import digits
from hmpo_jax.tasks import task as task_lib

_SYMBOLS = {digits.PAD: '_', digits.STOP: '.', digits.PLUS: '+'}
_SYMBOLS[digits.EQUALS] = '='
_SYMBOLS |= {digits.ZERO + i: str(i) for i in range(10)}
_TOKENS = {symbol: token for token, symbol in _SYMBOLS.items()}


def _encode(text):
  return jnp.array([_TOKENS[symbol] for symbol in text], jnp.int32)


def _decode(tokens):
  return ''.join(_SYMBOLS[token] for token in np.asarray(tokens).tolist())


@functools.cache
def _make(name, num_digits):
  """A task and its compiled answer."""
  task = digits.make(name, num_digits)
  return task, jax.jit(task.answer)


def _answer(prompt):
  """What follows a prompt, from its text alone."""
  question = prompt.removesuffix('=')
  if question == prompt:
    return prompt.translate(str.maketrans('0123456789', '3074185296'))
  if '+' not in question:
    return ''.join(sorted(question)) + '.'
  # Python refuses to print more than 4300 digits; there are 1024 at most.
  total = str(sum(map(int, question.split('+'))))
  return f'{total[::-1]}.'.ljust(question.index('+') + 2, '_')


class AnswerTest(parameterized.TestCase):
  def test_every_token_has_one_symbol(self):
    self.assertLen(_SYMBOLS, digits.VOCAB_SIZE)

  @parameterized.parameters(
    ('312=', '123.'),
    ('000=', '000.'),
    ('909=', '099.'),
    ('98=', '89.'),
    ('9876543210=', '0123456789.'),
  )
  def test_sort_by_hand(self, prompt, answer):
    _, respond = _make('sort', len(prompt) - 1)
    self.assertEqual(_decode(respond(_encode(prompt))), answer)

  @parameterized.named_parameters(
    ('of_the_docstring', '17+05=', '22._'),
    ('no_carry', '12+34=', '64._'),
    ('largest', '99+99=', '891.'),
    ('zero', '00+00=', '0.__'),
    ('one_digit', '04+05=', '9.__'),
    ('carry_into_a_new_place', '99+01=', '001.'),
    ('carry_that_runs_through', '0999+0001=', '0001._'),
    ('zero_inside', '0060+0043=', '301.__'),
    ('one_side_zero', '00+70=', '07._'),
  )
  def test_addition_by_hand(self, prompt, answer):
    _, respond = _make('addition', prompt.index('+'))
    self.assertEqual(_decode(respond(_encode(prompt))), answer)

  def test_mapped_copy_by_hand(self):
    task, respond = _make('mapped_copy', 10)
    self.assertEqual(_decode(respond(_encode('0123456789'))), '3074185296')
    self.assertEqual(task.stop, -1)

  def test_no_template_of_a_mapped_copy_earns_more_than_chance(self):
    task = digits.mapped_copy(16)
    prompts = jnp.asarray(task_lib.held_out_prompts(task, 512))
    result = task_lib.baselines(
      task, prompts, functools.partial(task_lib.score_rollout, task)
    )
    # 8192 tokens: .1 with a standard error of .0033.
    self.assertAlmostEqual(result['majority_reward'], 0.1, delta=0.015)
    self.assertAlmostEqual(result['modal_reward'], 0.1, delta=0.015)
    self.assertEqual(result['modal_exact'], 0)

  @parameterized.product(
    name=('sort', 'addition', 'mapped_copy'), num_digits=(2, 256, 1024)
  )
  def test_drawn_prompts_at_every_length(self, name, num_digits):
    task, respond = _make(name, num_digits)
    draw = jax.jit(jax.vmap(task.draw))
    prompts = np.asarray(draw(jax.random.split(jax.random.key(0), 8)))
    answers = np.stack([respond(prompt) for prompt in prompts])
    self.assertEqual(prompts.shape, (8, task.prompt_len))
    self.assertEqual(answers.shape, (8, task.response_len))
    self.assertEqual((prompts.dtype, answers.dtype), (jnp.int32, jnp.int32))
    for prompt, answer in zip(prompts, answers):
      text = _decode(prompt)
      digit = rf'\d{{{num_digits}}}'
      form = {
        'sort': f'{digit}=',
        'addition': rf'{digit}\+{digit}=',
        'mapped_copy': digit,
      }
      self.assertRegex(text, f'^{form[name]}$')
      self.assertEqual(_decode(answer), _answer(text))
    mask = answers != task.pad
    score = jax.jit(task_lib.score, static_argnums=0)(
      task, prompts, answers, mask
    )
    np.testing.assert_array_equal(score.reward, 1)
    np.testing.assert_array_equal(score.exact, 1)

  def test_digits_are_drawn_evenly(self):
    task = digits.sort(1000)
    drawn = task.draw(jax.random.key(0))[:1000] - digits.ZERO
    # 100 +- 9.5 of each.
    counts = np.bincount(drawn, minlength=10)
    self.assertLen(counts, 10)
    self.assertBetween(counts.min(), 60, 100)
    self.assertBetween(counts.max(), 100, 140)


class MakeTest(parameterized.TestCase):
  @parameterized.parameters(('sort', 5, 6, 6), ('addition', 5, 12, 7))
  def test_sizes(self, name, num_digits, prompt_len, response_len):
    task = digits.make(name, num_digits)
    self.assertEqual(
      (task.name, task.prompt_len, task.response_len),
      (name, prompt_len, response_len),
    )
    self.assertEqual((task.vocab_size, task.pad, task.stop), (14, 0, 1))

  def test_unknown_name_lists_those_there_are(self):
    with self.assertRaisesRegex(
      ValueError, "task 'sorting': must be one of sort, addit"
    ):
      digits.make('sorting', 5)


if __name__ == '__main__':
  absltest.main()

"""Prompts from a file: what is read, and what is refused by its line."""

import json
import pathlib
import re
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from hmpo_jax import config as config_lib
from hmpo_jax.tasks import prompt_file
from hmpo_jax.tasks import task as task_lib
from hmpo_jax.training import programs

# Vocabulary of 10, padding 0, stop 1.
_LINES = [{'prompt': [5, 7, 2], 'answer': [9, 1]}] + [
  {'prompt': [2, i], 'answer': [i, i, 1]} for i in range(2, 10)
]


class LoadTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.file = pathlib.Path(folder.name) / 'prompts.jsonl'

  def _load(self, lines):
    self.file.write_text(
      '\n'.join(
        line if isinstance(line, str) else json.dumps(line) for line in lines
      )
    )
    return prompt_file.load(str(self.file), 10, 0, 1, 4)

  def test_pads_prompts_left_and_answers_right(self):
    task = self._load(_LINES)
    self.assertEqual((task.prompt_len, task.response_len), (3, 4))
    answers = {(5, 7, 2): [9, 1, 0, 0], (0, 2, 6): [6, 6, 1, 0]}
    for prompt, answer in answers.items():
      np.testing.assert_array_equal(task.answer(np.array(prompt)), answer)

  def test_draws_every_training_prompt_and_no_held_out_one(self):
    task = self._load(_LINES)
    keys = jax.random.split(jax.random.key(0), 400)
    drawn = jax.vmap(lambda key: task_lib.draw_training(task, key))(keys)
    distinct = np.unique(drawn, axis=0)
    held_out = jax.vmap(task_lib.is_held_out)(jax.vmap(task.draw)(keys))
    self.assertLen(distinct, 9 - int(np.any(held_out)))
    self.assertFalse(np.any(jax.vmap(task_lib.is_held_out)(drawn)))

  def test_answers_may_be_missing(self):
    self.assertTrue(self._load(_LINES).has_answers)
    self.file = self.file.with_name('other.jsonl')
    task = self._load(_LINES + [{'prompt': [3]}])
    self.assertFalse(task.has_answers)
    np.testing.assert_array_equal(task.answer(np.array([0, 2, 6])), [0] * 4)

  @parameterized.named_parameters(
    ('empty', [], 'is empty'),
    ('no_json', [*_LINES, '{'], 'line 10 is no JSON'),
    ('no_object', ['3'], 'line 1 must be an object'),
    (
      'no_prompt',
      [{'answer': [1]}],
      'line 1 must be an object with a "prompt"',
    ),
    ('no_list', [{'prompt': 'abc'}], 'line 1: "prompt" must be a list'),
    ('no_tokens', [{'prompt': []}], 'line 1: "prompt" must be a list'),
    ('float', [{'prompt': [2.5]}], 'from 0 to 9'),
    ('bool', [{'prompt': [True]}], 'from 0 to 9'),
    (
      'outside',
      [{'prompt': [2], 'answer': [10, 1]}],
      r'line 1: "answer" must be .* got \[10, 1\]',
    ),
    ('padding', [{'prompt': [0, 2]}], 'without the padding 0'),
    (
      'twice',
      [*_LINES[:3], _LINES[1]],
      'line 4 holds the prompt of line 2 again',
    ),
    (
      'no_stop',
      [*_LINES[:2], '', {'prompt': [3], 'answer': [3]}],
      r'line 4: "answer" must end with the stop token 1 .* got \[3\]',
    ),
    (
      'too_long',
      [{'prompt': [2], 'answer': [2, 2, 2, 2, 1]}],
      'line 1: "answer" must .* at most config.task.response_len = 4',
    ),
    (
      'misspelt_prompt',
      [{'promt': [2]}],
      'line 1 must be an object with a "prompt", but "promt"',
    ),
  )
  def test_is_refused(self, lines, words):
    with self.assertRaisesRegex(config_lib.ConfigError, words) as caught:
      self._load(lines)
    self.assertNotIn('\n', str(caught.exception))
    self.assertIn('config.task.prompts', str(caught.exception))

  def test_answer_of_another_length_without_a_stop_token(self):
    self.file.write_text(
      '\n'.join(
        json.dumps({'prompt': [2, i], 'answer': [3] * (4 if i < 5 else 3)})
        for i in range(2, 9)
      )
    )
    with self.assertRaisesRegex(
      config_lib.ConfigError, 'line 4: "answer" must have .* 4 .*, has 3'
    ):
      prompt_file.load(str(self.file), 10, 0, -1, 4)

  @parameterized.parameters(('solution', ''), ('anwser', ', but "anwser"'))
  def test_missing_answer_is_named_by_its_line(self, key, near):
    lines = [*_LINES[:3], '', {'prompt': [3], key: [1]}, {'prompt': [4]}]
    self.assertFalse(self._load(lines).has_answers)
    config = config_lib.default_config()
    config.task.update(
      name='file', prompts=str(self.file), vocab_size=10, response_len=4
    )
    with self.assertRaisesRegex(
      config_lib.ConfigError, f'line 5 has no "answer"{near}: all must'
    ):
      programs.Programs(config)

  def test_line_that_is_no_text_is_named(self):
    self.file.write_bytes(b'{"prompt": [2]}\n\n{"prompt": [3\xff]}\n')
    with self.assertRaisesRegex(config_lib.ConfigError, 'readable .*line 3: '):
      prompt_file.load(str(self.file), 10, 0, 1, 4)

  def test_lines_of_windows(self):
    self.file.write_bytes(
      b'\r\n'.join(json.dumps(line).encode() for line in _LINES) + b'\r\n'
    )
    task = prompt_file.load(str(self.file), 10, 0, 1, 4)
    self.assertTrue(task.has_answers)

  def test_file_that_is_missing_a_folder_or_no_text(self):
    self.file.write_bytes(b'\xff\xfe')
    for path in (self.file.with_name('none'), self.file.parent, self.file):
      with self.assertRaisesRegex(config_lib.ConfigError, 'readable'):
        prompt_file.load(str(path), 10, 0, 1, 4)


class ReadmeTest(absltest.TestCase):
  def test_names_every_key_that_a_file_needs(self):
    config = config_lib.default_config()
    config.task.name = 'file'
    with self.assertRaises(config_lib.ConfigError) as caught:
      config_lib.validate(config)
    keys = re.findall(r'config\.(task\.\w+)', str(caught.exception))
    self.assertLen(keys, 4)
    readme = pathlib.Path(__file__).parents[2] / 'README.md'
    (own,) = (
      text
      for text in readme.read_text(encoding='utf-8').split('\n\n')
      if text.startswith('Your own prompts')
    )
    for key in keys:
      self.assertIn(key, own)


if __name__ == '__main__':
  absltest.main()

"""What a file or an override can be, and that all else is one clear line."""

import json
import math
import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized

from hmpo_jax import config as config_lib
from hmpo_jax.config import files as config_files
from hmpo_jax.run import folder as run_folder

_HMPO = str(pathlib.Path(__file__).parents[2] / 'configs' / 'hmpo.py')
_WITH_ARGUMENT = """
from hmpo_jax import config
def get_config(p='0.25'):
  result = config.default_config()
  result.loss.p = float(p)
  return result
"""


class LoadTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.folder = pathlib.Path(folder.name)

  def _file(self, text, name='some.py'):
    (self.folder / name).write_text(text, encoding='utf-8')
    return str(self.folder / name)

  def _assert_refused(self, words, path, overrides):
    with self.assertRaisesRegex(config_lib.ConfigError, words) as caught:
      config_files.load(path, overrides)
    self.assertNotIn('\n', str(caught.exception))

  @parameterized.parameters(
    ('num_steps', '7', 7),
    ('loss.p', '2', 2.0),
    ('loss.p', '-5e-1', -0.5),
    ('train.max_grad_norm', 'inf', math.inf),
    ('model.qk_bias', 'true', True),
    ('model.tie_embeddings', 'False', False),
    ('task.name', 'addition', 'addition'),
  )
  def test_override_takes_the_type_of_its_key(self, key, text, expected):
    config = config_files.load(_HMPO, {key: text})
    value = config_lib.lookup(config, key)
    self.assertEqual(value, expected)
    self.assertIs(type(value), type(expected))

  @parameterized.parameters(
    ('loss.pp', '1', r'config\.loss\.pp: unknown key; did you mean loss\.p'),
    ('los.p', '1', r'did you mean loss\.p\?'),
    ('train.num_steps', '1', 'did you mean num_steps or '),
    ('learning_rate', '1', r'did you mean optim\.learning_rate or '),
    ('loss.learning_rat', '1', r'did you mean optim\.learning_rate or '),
    ('optimizer.tau', '1', r'did you mean optim\.tau\?'),
    ('loss.eps', '1', r'did you mean loss\.clip_eps_.*advantage\.eps\?'),
    ('seed.x', '1', r'config\.seed is a value, not a section'),
    ('quux', '1', 'known keys here: .*num_steps'),
    ('loss', '1', r"config\.loss = '1': is a section"),
    ('num_steps', 'many', r"config\.num_steps = 'many': must be int"),
    ('num_steps', '1.5', 'must be int'),
    ('model.qk_bias', '2', 'must be bool'),
    ('loss.p', 'nan', r'config\.loss\.p = nan: must be finite'),
  )
  def test_override_that_does_not_fit(self, key, text, words):
    self._assert_refused(words, _HMPO, {key: text})

  @parameterized.named_parameters(
    ('no_function', 'x = 1', "KeyError: 'get_config'"),
    ('syntax', 'def :', 'SyntaxError'),
    ('raises', 'raise RuntimeError("a\\nb")', 'RuntimeError: a b, at line 1$'),
    (
      'raises_in_a_call',
      'def get_config():\n\n  return 1 / 0',
      'ZeroDivisionError: division by zero, at line 3$',
    ),
    ('exits', 'import sys\nsys.exit("so")', 'SystemExit: so'),
    ('number', 'def get_config(): return 3', 'ConfigDict, returned int'),
    ('nothing', 'def get_config(): return None', 'returned NoneType'),
  )
  def test_python_file_that_gives_no_configuration(self, text, words):
    self._assert_refused(words, self._file(text), {})

  def test_section_can_not_be_set(self):
    with self.assertRaisesRegex(config_lib.ConfigError, 'is a section'):
      config_files.set_key(config_lib.default_config(), 'loss', 1)

  @parameterized.parameters('nowhere.py', '', '.')
  def test_no_file(self, path):
    self._assert_refused('there is no file', path, {})

  @parameterized.parameters('{', '[]', '{}', '{"config": 3}')
  def test_json_that_describes_no_run(self, text):
    self._assert_refused(
      'config.json of a run', self._file(text, 'config.json'), {}
    )

  def test_argument_behind_the_colon(self):
    file = self._file(_WITH_ARGUMENT)
    self.assertEqual(config_files.load(file, {}).loss.p, 0.25)
    self.assertEqual(config_files.load(f'{file}:-2', {}).loss.p, -2)

  @parameterized.parameters(
    ('12:30/mine.py', '', 'mine'),
    ('12:30/mine.py', ':-2', 'mine--2'),
    ('12:30/mine.py', ':a:b/c', 'mine-a_b_c'),
    ('mine.py:7', '', 'mine'),
    ('12:30/config.json', '', '12:30-again'),
  )
  def test_colon_in_a_path_is_the_paths(self, name, argument, called):
    file = pathlib.Path(self.folder, name)
    file.parent.mkdir(exist_ok=True)
    file.touch()
    path = f'{file}{argument}'
    self.assertEqual(config_files.split(path), (str(file), argument[1:]))
    self.assertEqual(config_files.run_name(path), called)

  def test_config_json_of_a_run_gives_its_configuration(self):
    config = config_files.load(_HMPO, {'loss.p': '0.3', 'seed': '4'})
    file = self._file(
      json.dumps(run_folder.describe(config)), name='config.json'
    )
    again = config_files.load(file, {})
    self.assertEqual(again.to_dict(), config.to_dict())
    self.assertEqual(again.train.max_grad_norm, math.inf)
    self.assertEqual(config_files.load(file, {'seed': '5'}).seed, 5)

  def test_config_json_of_an_older_version_takes_defaults(self):
    config = config_files.load(_HMPO, {'loss.p': '0.3', 'seed': '4'})
    description = run_folder.describe(config)
    del description['config']['loss']['p'], description['config']['control']
    file = self._file(json.dumps(description), 'config.json')
    config.loss.p = -1.0
    self.assertEqual(config_files.load(file, {}).to_dict(), config.to_dict())

  def test_config_json_of_a_newer_version_names_the_key(self):
    description = run_folder.describe(config_lib.default_config())
    description['config']['loss']['q'] = 1.0
    self._assert_refused(
      r'config\.loss\.q: unknown',
      self._file(json.dumps(description), 'config.json'),
      {},
    )


if __name__ == '__main__':
  absltest.main()

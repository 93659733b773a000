"""Whose a run folder is, and that one process at a time writes it."""

import contextlib
import errno
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax

from hmpo_jax import config as config_lib
from hmpo_jax.plan import folder as plan_folder
from hmpo_jax.run import environment
from hmpo_jax.run import files
from hmpo_jax.run import folder as run_folder

_ROOT = pathlib.Path(__file__).parents[2]
_OURS: dict = {
  'config': {'seed': 0, 'loss': {'p': -1.0, 'name': 'power_mean'}},
  'inputs': {},
  'settings': {},
  'versions': {'jax': '1.0'},
  'commit': 'here',
  'device': 'cpu',
}

_CLAIM_FOREVER = """
import json, pathlib, sys, time
from hmpo_jax.run import environment
from hmpo_jax.run import files
from hmpo_jax.run import folder as run_folder
with run_folder.claimed(pathlib.Path(sys.argv[1]), json.loads(sys.argv[2])):
  print('claimed', flush=True)
  time.sleep(600)
"""


def _with(**parts):
  return _OURS | parts


class RunFolderTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.root = pathlib.Path(folder.name)
    self.folder = self.root / 'runs' / 'one'

  def _claim(self, description=None, folder=None):
    """Claims the folder and leaves it."""
    with run_folder.claimed(folder or self.folder, description or _OURS):
      pass

  def _assert_refused(self, description, pattern, folder=None):
    folder = folder or self.folder
    with self.assertRaisesRegex(config_lib.ConfigError, pattern):
      run_folder.refuse_other_run(folder, description)
    with self.assertRaisesRegex(config_lib.ConfigError, pattern):
      self._claim(description, folder)

  def test_new_folder_is_made_and_described(self):
    run_folder.refuse_other_run(self.folder, _OURS)
    self.assertFalse(self.folder.exists())
    self._claim()
    text = (self.folder / 'config.json').read_text(encoding='utf-8')
    self.assertEqual(json.loads(text), _OURS)

  def test_same_run_elsewhere_goes_on_and_keeps_its_description(self):
    self._claim()
    self._claim(_with(commit='there', device='gpu'))
    text = (self.folder / 'config.json').read_text(encoding='utf-8')
    self.assertEqual(json.loads(text), _OURS)

  def test_files_that_moved_make_no_other_run(self):
    place = lambda name: {
      'config': _OURS['config']
      | {
        'warm_start': {'folder': f'{name}/warm_start'},
        'exponent': {'path': f'{name}/metrics.jsonl'},
      }
    }
    self._claim(_with(inputs={'exponent.path': 'abc'}, **place('here')))
    self._claim(_with(inputs={'exponent.path': 'abc'}, **place('there')))
    self._assert_refused(
      _with(inputs={'exponent.path': 'abd'}, **place('there')),
      'inputs.exponent.path: abc there, abd here',
    )

  def test_prompts_that_moved_make_no_other_run(self):
    named = lambda place: {'config': {'task': {'prompts': place}}}
    self._claim(_with(inputs={'task.prompts': 'abc'}, **named('p.jsonl')))
    self._claim(_with(inputs={'task.prompts': 'abc'}, **named('./p.jsonl')))
    self._assert_refused(
      _with(inputs={'task.prompts': 'abd'}, **named('p.jsonl')),
      'inputs.task.prompts: abc there, abd here',
    )
    text = (self.folder / 'config.json').read_text(encoding='utf-8')
    self.assertEqual(json.loads(text)['config'], named('./p.jsonl')['config'])

  @parameterized.parameters('reward', 'control')
  def test_function_that_moved_makes_no_other_run(self, section):
    key = f'{section}.function'
    named = lambda name, digest: _with(
      inputs={key: digest}, config={section: {'function': name}}
    )
    self._claim(named('a.py:f', 'abc'))
    self._claim(named('./there/b.py:f', 'abc'))
    self._claim(named('a:f', 'abc'))
    self._claim(named('a:f', 'mended'))
    for name, digest in (('a:g', 'abc'), ('b:f', 'abd'), ('', 'abc')):
      self._assert_refused(named(name, digest), rf'\(config\.{key}: a:f there')
    unknown = named('b:f', '')
    unknown['inputs'] = {}
    self._assert_refused(unknown, rf'\(config\.{key}: a:f there')
    # What knows no content, as a plan, leaves it to the run.
    run_folder.refuse_other_run(self.folder, {'config': unknown['config']})

  @parameterized.parameters('checkpoints', 'metrics.jsonl', 'summary.json')
  def test_content_without_its_description_is_refused(self, name):
    self.folder.mkdir(parents=True)
    (self.folder / name).touch()
    self._assert_refused(_OURS, f'holds {name} but no config.json')

  def test_folder_that_can_not_be_made_is_bad_input(self):
    with self.assertRaisesRegex(config_lib.ConfigError, "can't be made"):
      self._claim(folder=pathlib.Path('/proc/run'))

  def test_file_is_refused_and_stays(self):
    file = self.root / 'file'
    file.write_text('precious', encoding='utf-8')
    for path in (file, file / 'below'):
      self._assert_refused(_OURS, f'workdir={path}.* not a folder', path)
    self.assertEqual(file.read_text(encoding='utf-8'), 'precious')

  @parameterized.named_parameters(
    (
      'value',
      {'config': {'seed': 0, 'loss': {'p': 0.5, 'name': 'power_mean'}}},
      r'\(config\.loss\.p: -1\.0 there, 0\.5 here\)',
    ),
    (
      'key_gone',
      {'config': {'seed': 0, 'loss': {'p': -1.0}}},
      r'\(config\.loss\.name: power_mean there, absent here\)',
    ),
    (
      'keys_of_every_part',
      {
        'config': _OURS['config'] | {'steps': 3},
        'inputs': {'task.prompts': 'f00'},
        'versions': {'jax': '2.0'},
      },
      r'\(config\.steps: absent there, 3 here; '
      r'inputs\.task\.prompts: absent there, f00 here; '
      r'versions\.jax: 1\.0 there, 2\.0 here\)',
    ),
  )
  def test_other_run_is_refused_and_stays(self, parts, pattern):
    self._claim()
    before = (self.folder / 'config.json').read_bytes()
    self._assert_refused(_with(**parts), pattern)
    self.assertEqual((self.folder / 'config.json').read_bytes(), before)

  @parameterized.named_parameters(
    ('empty', b''),
    ('cut', json.dumps(_OURS).encode()[:40]),
    ('binary', b'\xff\xfe\x00'),
    ('list', b'[1, 2]'),
    ('without_versions', b'{"config": {}, "inputs": {}, "settings": {}}'),
    (
      'changes_are_a_number',
      b'{"config": {}, "inputs": {}, "settings": {}, "versions": {}, '
      b'"changes": 5}',
    ),
    (
      'config_is_a_number',
      b'{"config": 3, "inputs": {}, "settings": {}, "versions": {}}',
    ),
  )
  def test_unreadable_description_is_refused_and_stays(self, content):
    self.folder.mkdir(parents=True)
    (self.folder / 'config.json').write_bytes(content)
    self._assert_refused(_OURS, r'config\.json is not the description of a run')
    self.assertEqual((self.folder / 'config.json').read_bytes(), content)

  def _of_length(self, num_steps, **changes):
    config = _OURS['config'] | {
      'num_steps': num_steps,
      'exponent': {'kind': 'fixed'},
      'control': {'function': ''},
    }
    return _with(config=config | changes)

  def test_length_alone_may_grow(self):
    self._claim(self._of_length(3))
    (self.folder / 'summary.json').touch()
    longer = self._of_length(5) | {'commit': 'there'}
    run_folder.refuse_other_run(self.folder, longer)
    self.assertTrue((self.folder / 'summary.json').exists())
    self._claim(longer)
    self.assertTrue((self.folder / 'summary.json').exists())
    run_folder.lengthen(self.folder, 3)
    self.assertTrue((self.folder / 'summary.json').exists())
    run_folder.lengthen(self.folder, 5)
    self.assertFalse((self.folder / 'summary.json').exists())
    text = (self.folder / 'config.json').read_text(encoding='utf-8')
    self.assertEqual(json.loads(text), self._of_length(5))

  def test_growth_that_is_killed_leaves_the_shorter_run(self):
    self._claim(self._of_length(3))
    before = (self.folder / 'config.json').read_bytes()
    (self.folder / 'summary.json').touch()
    with mock.patch.object(files, 'write_json', side_effect=OSError):
      with self.assertRaises(OSError):
        run_folder.lengthen(self.folder, 5)
    self.assertEqual((self.folder / 'config.json').read_bytes(), before)
    self.assertFalse((self.folder / 'summary.json').exists())

  def test_length_is_refused_with_its_reason_and_stays(self):
    self._claim(self._of_length(3))
    (self.folder / 'summary.json').touch()
    self._assert_refused(
      self._of_length(2),
      r'\(config\.num_steps: 3 there, 2 here, and a run can\'t be made '
      r'shorter\)',
    )
    self._assert_refused(
      self._of_length(5, seed=1),
      r'\(config\.num_steps: 3 there, 5 here; '
      r'config\.seed: 0 there, 1 here\)',
    )
    with self.assertRaisesRegex(
      config_lib.ConfigError, '3 there, 5 here, and it is tuned'
    ):
      run_folder.refuse_other_run(
        self.folder, self._of_length(5), 'it is tuned'
      )
    self.assertTrue((self.folder / 'summary.json').exists())

  def test_two_claims_at_once(self):
    with run_folder.claimed(self.folder, _OURS):
      with self.assertRaisesRegex(
        config_lib.ConfigError, f'another process is writing {self.folder}'
      ):
        self._claim()
      self._claim(folder=self.root / 'other')
    self._claim()

  def test_file_system_without_locks_is_named(self):
    fault = OSError(errno.ENOLCK, 'No locks available')
    with mock.patch.object(files.fcntl, 'flock', side_effect=fault):
      for claim in (
        self._claim,
        lambda: plan_folder.claimed(self.folder).__enter__(),
      ):
        with self.assertRaisesRegex(
          config_lib.ConfigError, f'{self.folder}: its file system has no locks'
        ):
          claim()

  @parameterized.parameters(
    'gs://bucket/run', 's3://b', 's3:/b/run', 'hdfs://host/x', 'runs/\udcff'
  )
  def test_place_that_is_no_folder_here(self, name):
    with self.assertRaisesRegex(config_lib.ConfigError, 'no path|not encoded'):
      run_folder.placed(pathlib.Path(name) if 's3:/b/' in name else name)

  @parameterized.parameters('runs/12:30:00', 'run:/x', 'runs/\u00e4', 'a//b')
  def test_place_of_any_other_name(self, name):
    self.assertEqual(run_folder.placed(name), pathlib.Path(name).absolute())

  def test_claim_ends_with_an_error(self):
    with contextlib.suppress(ZeroDivisionError):
      with run_folder.claimed(self.folder, _OURS):
        _ = 1 / 0
    self._claim()

  def test_lock_goes_with_a_process_that_is_killed(self):
    arguments = [str(self.folder), json.dumps(_OURS)]
    child = self.enter_context(
      subprocess.Popen(
        [sys.executable, '-c', _CLAIM_FOREVER, *arguments],
        cwd=_ROOT,
        stdout=subprocess.PIPE,
        text=True,
      )
    )
    self.addCleanup(child.kill)
    self._assert_says(child, 'claimed')
    with self.assertRaisesRegex(config_lib.ConfigError, 'another process'):
      self._claim()
    child.kill()
    child.wait()
    self._claim()

  def _assert_says(self, child, text):
    self.assertEqual(child.stdout.readline(), f'{text}\n')


class SettingsTest(absltest.TestCase):
  """What decides bits beside the configuration."""

  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.folder = pathlib.Path(folder.name)

  def _claim(self, **parts):
    with run_folder.claimed(self.folder, _with(**parts)):
      pass

  def test_another_number_of_threads_is_refused_with_its_remedy(self):
    self._claim(settings={'cpu_threads': '2'})
    with self.assertRaisesRegex(
      config_lib.ConfigError,
      r'settings.cpu_threads: 2 there, 4 here \(NPROC=2 in front',
    ):
      self._claim(settings={'cpu_threads': '4'})
    self._claim(settings={'cpu_threads': '2'})

  def test_what_one_side_does_not_record_does_not_count(self):
    self._claim(settings={'platform': 'cpu', 'jax_default_prng_impl': 'x'})
    self._claim(settings={'platform': 'cpu', 'cpu_threads': '4'})
    with self.assertRaisesRegex(config_lib.ConfigError, 'settings.platform'):
      self._claim(settings={'platform': 'gpu', 'cpu_threads': '4'})

  def test_doubts_name_another_cpu_and_what_was_not_recorded(self):
    here = {'device': jax.devices()[0].device_kind, 'cpu': environment.cpu()}
    settings = {'platform': 'cpu', 'cpu_threads': '2'}
    for parts, pattern in (
      ({'settings': settings} | here, '^$'),
      ({'settings': settings} | here | {'cpu': 'old'}, "its cpu was 'old' and"),
      (
        {'settings': settings} | here | {'device': 'TPU'},
        "its device was 'TPU'",
      ),
      ({'settings': {'platform': 'cpu'}} | here, 'not record the number of'),
    ):
      files.write_json(self.folder / run_folder.CONFIG, _with(**parts))
      self.assertRegex(run_folder.doubts(self.folder), pattern)


class DescribeTest(absltest.TestCase):
  def test_survives_json(self):
    config = config_lib.default_config()
    description = run_folder.describe(config)
    self.assertEqual(json.loads(json.dumps(description)), description)
    # JSON knows no infinity.
    self.assertEqual(description['config']['train']['max_grad_norm'], 'inf')
    self.assertEqual(description['config']['loss']['p'], config.loss.p)
    self.assertContainsSubset(
      {'jax', 'jaxlib', 'flax', 'optax', 'numpy'}, description['versions']
    )

  def test_commit_is_that_of_the_source_tree(self):
    commit = run_folder.describe(config_lib.default_config())['commit']
    self.assertRegex(commit, r'^(unknown|[^ ]*[0-9a-f]{7,40}(-dirty)?)$')

  def test_without_git_the_commit_is_unknown(self):
    with mock.patch.dict(os.environ, {'PATH': ''}):
      description = run_folder.describe(config_lib.default_config())
    self.assertEqual(description['commit'], 'unknown')


if __name__ == '__main__':
  absltest.main()

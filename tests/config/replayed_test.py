"""A replayed order is another run's, to the bit, or one clear line."""

import json
import pathlib
import tempfile
import types

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hmpo_jax import config as config_lib
from hmpo_jax.config import replayed
from hmpo_jax.config import traced
from hmpo_jax.run import first_params
from hmpo_jax.run import folder as run_folder
from hmpo_jax.run import records as run_records
from hmpo_jax.run import trainer
from hmpo_jax.training import learner
from hmpo_jax.training import programs
from tests import small

# Steps always: above the largest gap up, at any trend.
_ADAPTIVE = {
  'loss__p': 0.1,
  'exponent__kind': 'adaptive',
  'exponent__gap_low': 1e3,
  'exponent__gap_high': 1e3,
  'exponent__trend': 1e3,
  'exponent__step_size': 0.3,
}
_COSINE = {
  'loss__p': 2.0,
  'exponent__kind': 'cosine',
  'exponent__num_steps': 3.0,
}
# What a kind itself decides or reports of its bounds.
_OWN = {'exponent/decision', 'exponent/at_bound'}

_step = jax.jit(learner.train_step, static_argnums=0)


def _steps(static, state, hparams):
  """Metrics of three steps."""
  records = []
  for _ in range(3):
    state, record = _step(static, state, hparams, jnp.asarray(False))
    records.append(jax.device_get(record))
  return records


def _record(step, order=0.5, **values):
  record = {'step': step, 'exponent/p': order, 'mean/p': order}
  return record | {'skipped/loss': 0} | values


class _Folder(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.folder = pathlib.Path(folder.name)
    self.file = self.folder / 'metrics.jsonl'

  def _write(self, *records):
    lines = (json.dumps(record) + '\n' for record in records)
    self.file.write_text(''.join(lines), encoding='utf-8')

  def _config(self, **overrides):
    return small.config(
      **(
        {'exponent__kind': 'replayed', 'exponent__path': str(self.file)}
        | overrides
      )
    )


class LoadTest(_Folder):
  def test_orders_of_the_records_to_the_bit(self):
    orders = np.random.default_rng(0).normal(size=5).astype(np.float32)
    self._write(
      *(_record(i + 1, run_records.plain(p)) for i, p in enumerate(orders))
    )
    loaded = replayed.load(self._config())
    self.assertEqual(loaded.dtype, np.float32)
    np.testing.assert_array_equal(loaded, orders)

  def test_other_kinds_read_nothing(self):
    self.assertIsNone(replayed.load(small.config()))

  def test_mean_may_be_rounded_and_say_nothing_of_what_was_skipped(self):
    self._write(
      _record(1, 1.5, **{'mean/p': 1.500001}),
      _record(2, 0.5, **{'mean/p': 1.5, 'skipped/no_signal': 3}),
    )
    np.testing.assert_array_equal(replayed.load(self._config()), [1.5, 0.5])

  @parameterized.named_parameters(
      ('empty', '', 'is empty'),
      ('no_json', '{"step": 1', 'line 1 is no record'),
      ('number', '3', 'line 1 is no record'),
      ('without_an_order', '{"step": 1}', "line 1 .*KeyError.'exponent/p'"),
      ('without_a_mean', '{"step": 1, "exponent/p": 1.0}', "KeyError.'mean/p'"),
      ('a_list', json.dumps(_record(1, [1])), 'line 1 is no record'),
      ('too_long', json.dumps(_record(1, 10**400)), 'OverflowError'),
      ('second_step', json.dumps(_record(2)), 'line 1 is of step 2'),
      ('blank', '\n' + json.dumps(_record(1)), 'line 1 is no record'),
      ('nan', json.dumps(_record(1, float('nan'))), 'nan: must be finite'),
      ('beyond', json.dumps(_record(1, -1e39)), 'must be finite in float32'),
      ('moving', json.dumps(_record(1, **{'mean/p': 0.501})),
       'line 1: the updates of a step must share one order'),
      ('mean_is_nan', json.dumps(_record(1, **{'mean/p': float('nan')})),
       'must share one order'),
  )  # fmt: skip
  def test_file_that_holds_no_trajectory(self, text, pattern):
    self.file.write_text(text, encoding='utf-8')
    with self.assertRaisesRegex(config_lib.ConfigError, pattern) as caught:
      replayed.load(self._config())
    self.assertNotIn('\n', str(caught.exception))
    self.assertIn('config.exponent.path = ', str(caught.exception))

  def test_file_that_can_not_be_read(self):
    self.file.write_bytes(b'{"step": 1}\n\xff\xfe\x00')
    for path in (self.file, self.folder, self.folder / 'none'):
      with self.assertRaisesRegex(config_lib.ConfigError, 'readable text file'):
        replayed.load(self._config(exponent__path=str(path)))
    with self.assertRaisesRegex(config_lib.ConfigError, 'line 2: .*utf-8'):
      replayed.load(self._config())


class ReplayTest(_Folder):
  @parameterized.parameters(_COSINE, _ADAPTIVE)
  def test_step_that_replays_its_own_order_is_the_same_step(self, **settings):
    # With a path as long as the replay's both are one program.
    config = small.config(num_steps=3, **settings)
    static, hparams, first = small.start(config)
    idle = hparams.exponent._replace(path=jnp.zeros(3))
    records = _steps(static, first, hparams._replace(exponent=idle))
    with run_records.Writer(self.folder, 0) as writer:
      for step, record in enumerate(records, 1):
        writer.write(step, record, {})
    # Another start: what is replayed doesn't depend on it.
    replay = programs.Programs(self._config(num_steps=3, loss__p=-1.0))
    self.assertLen(np.unique(replay.hparams.exponent.path), 3)
    again = _steps(replay.static, first, replay.hparams)
    for record, other in zip(records, again, strict=True):
      self.assertEqual(record.keys(), other.keys())
      for name in record.keys() - _OWN:
        np.testing.assert_array_equal(record[name], other[name], name)

  @parameterized.parameters(_COSINE, _ADAPTIVE)
  @pytest.mark.long
  def test_run_that_replays_its_own_orders_is_the_same_run(self, **settings):
    sizes = {'num_steps': 4, 'eval__every': 2, 'warm_start__num_steps': 2}
    trainer.train(small.config(**sizes, **settings), self.folder)
    trainer.train(self._config(**sizes), self.folder / 'again')
    for record, again in zip(
      run_records.read(self.folder),
      run_records.read(self.folder / 'again'),
      strict=True,
    ):
      for name in record.keys() - _OWN:
        self.assertEqual(record[name], again[name], name)

  def test_warm_start_is_that_of_the_other_arms(self):
    self._write(_record(1))
    stub = types.SimpleNamespace(
      static=traced.static(small.config()),
      warm_params=lambda: {'w': jnp.ones(2)},
    )
    for config in (small.config(), self._config()):
      first_params.of(config, stub, self.folder, self.fail)
    self.assertLen(list((self.folder / 'warm_start').iterdir()), 1)

  def test_changed_file_is_another_run(self):
    self._write(_record(1), _record(2))
    config = self._config(num_steps=1)
    before = run_folder.describe(config)
    with run_folder.claimed(self.folder / 'run', before):
      pass
    self._write(_record(1), _record(2, 0.75))
    after = run_folder.describe(config)
    self.assertEqual(list(after['inputs']), ['exponent.path'])
    with self.assertRaisesRegex(
      config_lib.ConfigError, r'inputs\.exponent\.path: [0-9a-f]{64} there'
    ):
      run_folder.refuse_other_run(self.folder / 'run', after)


if __name__ == '__main__':
  absltest.main()

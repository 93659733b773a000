"""The fields of a record that controllers read."""

import copy
import csv
import json
import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import jsonschema
import numpy as np

from hmpo_jax.run import records as run_records
from hmpo_jax.run import telemetry
from hmpo_jax.run import trainer
from tests import small


def _record(arithmetic=2.0, harmonic=1.0, **changes):
  """The metrics of a step from which its fields are made."""
  iterates = lambda start: np.float32(start) + np.arange(11, dtype=np.float32)
  return {
    'agm/arithmetic': np.float32(arithmetic),
    'agm/harmonic': np.float32(harmonic),
    'agm/arithmetic_iterates': iterates(arithmetic),
    'agm/harmonic_iterates': iterates(harmonic),
    'agm/arithmetic_iterates_clip': iterates(10 * arithmetic),
    'agm/harmonic_iterates_clip': iterates(10 * harmonic),
    'advantage/mean': np.float32(0.5),
    'advantage/std': np.float32(3.0),
    'reward/mean': np.float32(0.75),
    'eval/reward': 0.5,
    'eval/step': 3,
    'qk/clipped_frac': np.float32(0.25),
  } | changes


def _fields(record, previous=None, *, step=3, iterations=3, history=5):
  return telemetry.fields(
    record, previous or {}, step=step, iterations=iterations, history=history
  )


class FieldsTest(parameterized.TestCase):
  def test_values(self):
    fields = _fields(_record(), {'train_reward_mean': 0.5})
    np.testing.assert_array_equal(
      fields['agm/harmonic_iterates_clip'], [10, 11, 12, 13]
    )
    self.assertEqual(
      {k: float(v) for k, v in fields.items() if not np.ndim(v)},
      {
        'td_mean': 0.5,
        'td_var': 9.0,
        'q_rel_change': 0.5,
        'train_reward_mean': 0.75,
        'eval_reward': 0.5,
        'eval_is_new': 1.0,
        'muon_clip_active': 1.0,
        'muon_clip_rate': 0.25,
      },
    )
    self.assertIs(fields['muon_clip_active'], True)

  def test_first_step_has_no_change(self):
    self.assertEqual(_fields(_record())['q_rel_change'], 0)

  def test_change_from_nothing_is_finite(self):
    fields = _fields(_record(), {'train_reward_mean': 0.0})
    self.assertEqual(fields['q_rel_change'], np.float32(0.75 / 1e-8))

  def test_step_without_a_sound_update_clipped_nothing(self):
    fields = _fields(_record(**{'qk/clipped_frac': np.float32(np.nan)}))
    self.assertEqual(fields['muon_clip_rate'], 0)
    self.assertIs(fields['muon_clip_active'], False)

  def test_evaluation_is_new_in_the_step_that_measured_it(self):
    self.assertIs(_fields(_record(), step=3)['eval_is_new'], True)
    self.assertIs(_fields(_record(), step=4)['eval_is_new'], False)


class HistoriesTest(parameterized.TestCase):
  def _histories(self, records, previous=None, length=5):
    """Of the last of some records."""
    for record in records:
      previous = telemetry.histories(record, previous or {}, length)
    return previous

  def test_hold_the_last_steps_newest_last(self):
    result = self._histories([_record(i + 0.5, i) for i in range(8)])
    self.assertEqual(
      result,
      {
        'arithmetic_history': [3.5, 4.5, 5.5, 6.5, 7.5],
        'harmonic_history': [3.0, 4.0, 5.0, 6.0, 7.0],
        'arithmetic_history_clip': [35.0, 45.0, 55.0, 65.0, 75.0],
        'harmonic_history_clip': [30.0, 40.0, 50.0, 60.0, 70.0],
      },
    )

  def test_are_shorter_while_fewer_steps_are_done(self):
    result = self._histories([_record(2.0, 1.0), _record(4.0, 3.0)])
    self.assertEqual(result['arithmetic_history'], [2.0, 4.0])
    self.assertEqual(self._histories([_record()])['harmonic_history'], [1.0])

  @parameterized.parameters((np.nan, np.nan), (np.inf, 1.0), (3.0, np.nan))
  def test_step_that_did_not_measure_both_adds_nothing(self, a, h):
    sound, broken = _record(2.0, 1.0), _record(a, h)
    self.assertEqual(
      self._histories([broken]), dict.fromkeys(self._histories([sound]), [])
    )
    result = self._histories([sound, broken, _record(4.0, 3.0)])
    self.assertEqual(result['arithmetic_history'], [2.0, 4.0])
    self.assertEqual(result['harmonic_history_clip'], [10.0, 30.0])

  def test_do_not_count_among_the_values_that_were_not_finite(self):
    broken = _record(np.nan, np.nan)
    with tempfile.TemporaryDirectory() as name:
      with run_records.Writer(pathlib.Path(name), 0) as writer:
        writer.write(1, broken | _fields(broken), {})
      (record,) = run_records.read(pathlib.Path(name))
    # A and H themselves, and four lists of iterates.
    self.assertEqual(record['nonfinite_values'], 6)
    self.assertEqual(record['arithmetic_history'], [])

  def test_go_on_from_the_file_after_a_resume(self):
    records = [
      _record(np.float32(i) / 3, 1 / np.float32(i + 1)) for i in range(9)
    ]
    with tempfile.TemporaryDirectory() as name:
      folder, last = pathlib.Path(name), 0
      for upto in (2, 6, 9):  # three processes
        with run_records.Writer(folder, last) as writer:
          for record in records[last:upto]:
            last += 1
            writer.write(last, record | _fields(record, writer.last), {})
      written = run_records.read(folder)
    for i, record in enumerate(written):
      self.assertEqual(
        record['arithmetic_history'],
        [r['agm/arithmetic'] for r in written[: i + 1]][-5:],
      )
      self.assertEqual(
        record['harmonic_history'],
        [r['agm/harmonic'] for r in written[: i + 1]][-5:],
      )


class RecordTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    folder = tempfile.TemporaryDirectory()
    cls.addClassCleanup(folder.cleanup)
    cls.folder = pathlib.Path(folder.name)
    # A tau that clips, ratios that move, and a reward that moves with them.
    trainer.train(
      small.config(
        num_steps=7,
        optim__qk_clip='weights',
        optim__tau=0.01,
        control__agm_iterations=3,
        control__history=5,
        eval__every=3,
      ),
      cls.folder,
    )
    text = (cls.folder / run_records.METRICS).read_text('utf-8')
    cls.records = [json.loads(line) for line in text.splitlines()]

  def test_every_record_obeys_the_schema(self):
    validator = jsonschema.Draft202012Validator(telemetry.schema())
    validator.check_schema(telemetry.schema())
    for record in self.records:
      self.assertEqual([e.message for e in validator.iter_errors(record)], [])

  def test_schema_refuses_what_controllers_cannot_read(self):
    validator = jsonschema.Draft202012Validator(telemetry.schema())
    for name, value in (
      ('step', 0),
      ('step', '1'),
      ('eval_is_new', 1.0),
      ('agm/arithmetic_iterates', []),
      ('arithmetic_history', [1.0, None]),
      ('muon_clip_active', 1.0),
      ('muon_clip_rate', 1.01),
      ('eval_reward', None),
      ('policy/entropy', None),
      ('policy/entropy', 'low'),
      ('qk/max_logit_per_head', [[1.0]]),
    ):
      record = copy.deepcopy(self.records[0]) | {name: value}
      self.assertFalse(validator.is_valid(record), (name, value))
    for name in telemetry.schema()['required']:
      record = {k: v for k, v in self.records[0].items() if k != name}
      self.assertFalse(validator.is_valid(record), name)

  def test_every_field_says_what_it_is(self):
    for name, field in telemetry.schema()['properties'].items():
      self.assertGreater(len(field['description']), 15, name)

  def test_iterates_start_at_the_means_of_the_step(self):
    for record in self.records:
      self.assertLen(record['agm/arithmetic_iterates'], 4)
      self.assertLen(record['agm/harmonic_iterates_clip'], 4)
      for name in ('arithmetic', 'harmonic'):
        np.testing.assert_allclose(
          record[f'agm/{name}_iterates'][0], record[f'agm/{name}'], rtol=3e-7
        )
      self.assertGreater(record['agm/gap'], 0)

  def test_histories_are_those_of_the_last_steps(self):
    self.assertLen({r['agm/arithmetic'] for r in self.records}, 7)
    for i, record in enumerate(self.records):
      last = self.records[max(0, i - 4) : i + 1]
      for name in ('arithmetic', 'harmonic'):
        self.assertEqual(
          record[f'{name}_history'], [r[f'agm/{name}'] for r in last]
        )
        self.assertEqual(
          record[f'{name}_history_clip'],
          [r[f'agm/{name}_iterates_clip'][0] for r in last],
        )

  def test_fields_follow_their_sources(self):
    before = None
    for record in self.records:
      self.assertEqual(record['train_reward_mean'], record['reward/mean'])
      self.assertEqual(record['eval_reward'], record['eval/reward'])
      self.assertIs(record['eval_is_new'], record['step'] in (3, 6, 7))
      self.assertIs(record['muon_clip_active'], True)
      self.assertEqual(record['muon_clip_rate'], record['qk/clipped_frac'])
      change = abs(record['reward/mean'] - before) / before if before else 0
      self.assertAlmostEqual(record['q_rel_change'], change, places=6)
      before = record['reward/mean']
    self.assertGreater(max(r['q_rel_change'] for r in self.records), 0)

  def test_table_holds_a_boolean_as_a_number(self):
    # What reads CSV takes the text False as true.
    text = (self.folder / run_records.TABLE).read_text('utf-8')
    rows = list(csv.DictReader(text.splitlines()))
    self.assertEqual([row['muon_clip_active'] for row in rows], ['1'] * 7)


if __name__ == '__main__':
  absltest.main()

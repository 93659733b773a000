"""The files of a run: whole lines, finite values, no step twice."""

import csv
import json
import math
import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest
import jax.numpy as jnp
import numpy as np

from hmpo_jax import config as config_lib
from hmpo_jax.run import records as run_records
from hmpo_jax.run import tensorboard
from tests import small


class WriterTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.folder = pathlib.Path(folder.name)

  def _write(self, steps, start=0):
    with run_records.Writer(self.folder, start) as writer:
      for step in steps:
        writer.write(
          step,
          {
            'loss': jnp.float32(0.1 * step),
            'count': np.int32(step),
            'active': np.bool_(True),
            'heads': jnp.arange(4.0).reshape(2, 2),
          },
          {'step_s': 0.5},
        )

  def _bytes(self):
    return [
      (self.folder / name).read_bytes()
      for name in (run_records.METRICS, run_records.TABLE)
    ]

  def test_values_keep_their_type_and_digits(self):
    self._write([1])
    line = (self.folder / 'metrics.jsonl').read_text('utf-8')
    self.assertEqual(
      line,
      '{"step": 1, "loss": 0.1, "count": 1, "active": true, '
      '"heads": [0.0, 1.0, 2.0, 3.0], "nonfinite_values": 0}\n',
    )
    timing = json.loads((self.folder / 'timing.jsonl').read_text('utf-8'))
    self.assertEqual(timing, {'step': 1, 'step_s': 0.5})

  def test_list_that_is_not_finite_repeats_one_of_another_length(self):
    with run_records.Writer(self.folder, 0) as writer:
      writer.write(1, {'history': np.array([1.0, 2.0, 3.0])}, {})
      writer.write(2, {'history': np.full(5, np.nan)}, {})
      writer.write(3, {'history': np.array([np.nan, 7.0])}, {})
    self.assertEqual(
      [r['history'] for r in run_records.read(self.folder)],
      [[1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 3.0, 3.0], [1.0, 7.0]],
    )

  def test_table_has_the_scalars(self):
    self._write([1, 2])
    with open(self.folder / 'metrics.csv', encoding='utf-8') as file:
      rows = list(csv.reader(file))
    self.assertEqual(
      rows[0], ['step', 'loss', 'count', 'active', 'nonfinite_values']
    )
    self.assertEqual(rows[2], ['2', '0.2', '2', '1', '0'])

  def test_resumed_files_equal_undisturbed_ones(self):
    self._write([1, 2, 3])
    whole = self._bytes()
    # Killed within step 3, resumed from the checkpoint of step 1.
    with open(self.folder / 'metrics.jsonl', 'a', encoding='utf-8') as file:
      file.write('{"step": 4, "lo')
    self._write([2, 3], start=1)
    self.assertEqual(self._bytes(), whole)
    steps = [record['step'] for record in run_records.read(self.folder)]
    self.assertEqual(steps, [1, 2, 3])

  def test_value_that_is_not_finite_is_the_last_one_and_counted(self):
    with run_records.Writer(self.folder, 0) as writer:
      writer.write(1, {'a': math.nan, 'b': 2.0, 'heads': [1.0, 2.0]}, {})
      writer.write(2, {'a': 5.0, 'b': math.inf, 'heads': [3.0, -math.inf]}, {})
    with run_records.Writer(self.folder, 2) as writer:
      writer.write(3, {'a': math.nan, 'b': 3.0, 'heads': [math.nan, 4.0]}, {})
    first, second, third = run_records.read(self.folder)
    self.assertEqual((first['a'], first['nonfinite_values']), (0.0, 1))
    self.assertEqual((second['b'], second['heads']), (2.0, [3.0, 2.0]))
    self.assertEqual((third['a'], third['heads']), (5.0, [3.0, 4.0]))
    self.assertEqual(third['nonfinite_values'], 2)

  def test_last_finite_value_survives_a_record_without_its_name(self):
    with run_records.Writer(self.folder, 0) as writer:
      writer.write(1, {'a': 5.0, 'heads': [1.0]}, {})
      writer.write(2, {'a': 6.0}, {})
    with run_records.Writer(self.folder, 2) as writer:
      writer.write(3, {'a': math.nan, 'heads': [math.nan]}, {})
    third = run_records.read(self.folder)[2]
    self.assertEqual((third['a'], third['heads']), (6.0, [1.0]))

  def test_what_was_not_finite_is_named_and_no_measurement(self):
    with run_records.Writer(self.folder, 0) as writer:
      writer.write(1, {'a': 5.0, 'b': 1.0}, {})
      writer.write(2, {'a': math.nan, 'b': 2.0}, {}, {'skipped': {'loss': 4}})
    with run_records.Writer(self.folder, 2) as writer:
      writer.write(3, {'a': 7.0, 'b': math.inf}, {})
    text = (self.folder / 'faults.jsonl').read_text('utf-8')
    self.assertEqual(
      [json.loads(line) for line in text.splitlines()],
      [
        {'step': 2, 'skipped': {'loss': 4}, 'nonfinite': ['a']},
        {'step': 3, 'nonfinite': ['b']},
      ],
    )
    records = run_records.read_measured(self.folder)
    np.testing.assert_equal([r['a'] for r in records], [5.0, math.nan, 7.0])
    np.testing.assert_equal([r['b'] for r in records], [1.0, 2.0, math.nan])

  def test_board_shows_no_point_for_what_was_not_measured(self):
    with run_records.Writer(self.folder, 0) as writer:
      with mock.patch.object(tensorboard.Board, 'show') as show:
        writer.write(1, {'a': math.nan, 'b': 2.0}, {})
    self.assertEqual(
      show.call_args.args[1], {'step': 1, 'b': 2.0, 'nonfinite_values': 1}
    )

  def test_list_that_grows_is_written_whole(self):
    with run_records.Writer(self.folder, 0) as writer:
      writer.write(1, {'heads': []}, {})
      writer.write(2, {'heads': [1.0, 2.0, math.nan]}, {})
    self.assertEqual(run_records.read(self.folder)[1]['heads'], [1.0, 2.0, 0.0])

  def test_times_are_cut_with_the_records(self):
    self._write([1, 2, 3])
    with open(self.folder / 'timing.jsonl', 'a', encoding='utf-8') as file:
      file.write('{"step": 4, "st')
    self._write([2], start=1)
    lines = (self.folder / 'timing.jsonl').read_text('utf-8').splitlines()
    self.assertEqual([json.loads(line)['step'] for line in lines], [1, 2])

  def test_number_that_is_no_json_is_named_by_its_line(self):
    self._write([1, 2])
    file = self.folder / 'metrics.jsonl'
    first, second = file.read_text('utf-8').splitlines()
    file.write_text(f'{first}\n{second.replace("0.2", "NaN")}\n', 'utf-8')
    with self.assertRaisesRegex(
      config_lib.ConfigError, r'line 2: damaged .*NaN is no JSON'
    ):
      run_records.read(self.folder)

  def test_damage_is_named_by_its_line(self):
    self._write([1, 2, 3])
    file = self.folder / 'metrics.jsonl'
    lines = file.read_bytes().splitlines(keepends=True)
    deep = b'[' * 100_000 + b'\n'
    for number in (1, 2, 3):
      for damage in (
        b'{"st\n',
        b'3\n',
        b'{"step": 7}\n',
        b'{}\n',
        b'\xff\n',
        deep,
      ):
        file.write_bytes(
          b''.join(lines[: number - 1] + [damage] + lines[number:])
        )
        with self.assertRaisesRegex(
          config_lib.ConfigError, rf'metrics\.jsonl.*line {number}\b'
        ):
          run_records.read(self.folder)

  def test_writes_events_and_config_to_a_new_folder(self):
    folder = self.folder / 'new' / 'run'
    config = small.config(seed=7)
    with run_records.Writer(folder, 0, config=config) as writer:
      writer.write(1, {'heads': [1.0, 2.0]}, {})
    (event,) = (folder / 'tensorboard').iterdir()
    self.assertIn(b'heads/max', event.read_bytes())
    self.assertIn(b'"seed": 7', event.read_bytes())


if __name__ == '__main__':
  absltest.main()

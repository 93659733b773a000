"""What a plan keeps of its tuning, and what a run of a grid came to."""

import json
import math
import pathlib
import tempfile

from absl.testing import absltest

from hmpo_jax import config as config_lib
from hmpo_jax.plan import design
from hmpo_jax.plan import folder
from hmpo_jax.plan import tuning

_POINT = tuning.Point(1e-3, 0.1)


def _plan():
  return design.Plan(
    question='Which?',
    seeds=(0, 1),
    tasks={'sort': {}},
    base={'num_steps': 4},
    variants={'gspo': design.Variant({}, 'own')},
    failure_reward=0.1,
    tuning=design.Tuning((1e-3,), (0.1,), (100,)),
  )


class FolderTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    scratch = tempfile.TemporaryDirectory()
    self.addCleanup(scratch.cleanup)
    self.folder = pathlib.Path(scratch.name)
    self.run = tuning.runs(_plan(), 'sort', 'gspo', [_POINT], (100,))[0][1]
    self.path = self.folder / self.run.folder
    self.path.mkdir(parents=True)

  def _write(self, name, content):
    (self.path / name).write_text(json.dumps(content), encoding='utf-8')

  def _record(self, rewards, **more):
    """Evaluations at each step, and one before the first."""
    self._write('start.json', {'eval/reward': rewards[0]})
    lines = [
      json.dumps(
        {'step': step, 'eval/step': step, 'eval/reward': reward} | more
      )
      for step, reward in enumerate(rewards[1:], 1)
    ]
    (self.path / 'metrics.jsonl').write_text('\n'.join([*lines, '']))

  def _result(self):
    return folder.result(_plan(), self.folder, self.run, _POINT)

  def test_area_and_clipped_rows_of_a_finished_run(self):
    self._record(
      [0, 0.2, 0.4, 0.6, 0.8], **{'clip/low_frac': 0.25, 'clip/high_frac': 0.5}
    )
    self._write('summary.json', {})
    found = self._result()
    self.assertEqual(found[:5], ('sort', 'gspo', 1e-3, 0.1, 100))
    self.assertAlmostEqual(found.area, 0.4)
    self.assertFalse(found.failed)
    self.assertAlmostEqual(found.clip_frac, 0.75)

  def test_a_failure_counts_from_its_step_on(self):
    self._record([0.4, 0.6, 0.9])
    self._write('failed.json', {'reason': 'NaN', 'step': 2, 'final': True})
    found = self._result()
    # .4 to .6 in the first step, .6 held in the second, then .1 for two.
    self.assertAlmostEqual(found.area, (0.5 + 0.6 + 0.1 + 0.1) / 4)
    self.assertTrue(found.failed)
    self.assertEqual(found.clip_frac, 0)

  def test_a_run_that_never_began(self):
    self._write('failed.json', {'reason': 'bad', 'step': 0, 'final': False})
    found = self._result()
    self.assertEqual(found.area, 0.1)
    self.assertTrue(math.isnan(found.clip_frac))
    (self.folder / tuning.FOLDER).mkdir(exist_ok=True)
    folder.write_tuning(self.folder, [found])
    (kept,) = folder.read_tuning(self.folder)['sort', 'gspo']
    self.assertTrue(math.isnan(kept.clip_frac))

  def test_steps_that_trained_no_row_clip_none(self):
    self._record([0, 0.2, 0.4], **{'clip/low_frac': 0.5})
    (self.path / 'faults.jsonl').write_text(
      '{"step": 2, "nonfinite": ["clip/low_frac"]}\n'
    )
    lines = (self.path / 'metrics.jsonl').read_text().splitlines()
    repeated = json.dumps(json.loads(lines[1]) | {'clip/low_frac': 0.1})
    (self.path / 'metrics.jsonl').write_text(f'{lines[0]}\n{repeated}\n')
    self._write('summary.json', {})
    self.assertEqual(self._result().clip_frac, 0.5)

  def test_a_run_that_goes_on_has_no_result(self):
    self._record([0.4, 0.6])
    with self.assertRaisesRegex(config_lib.ConfigError, 'has not finished'):
      self._result()

  def test_the_grid_survives_its_file(self):
    self.assertEmpty(folder.read_tuning(self.folder))
    results = [
      tuning.Result(
        'sort',
        name,
        1e-4,
        0.05,
        seed,
        0.123456789,
        seed == 1,
        0.25,
        name == 'null',
      )
      for name in ('gspo', 'null')
      for seed in (0, 1)
    ]
    folder.write_tuning(self.folder, results)
    found = folder.read_tuning(self.folder)
    self.assertEqual(list(found), [('sort', 'gspo'), ('sort', 'null')])
    self.assertEqual(sum(found.values(), []), results)

  def test_damaged_grid_is_named_by_its_line(self):
    result = tuning.Result('sort', 'gspo', 1e-4, 0.05, 0, 0.1, False, 0.2)
    folder.write_tuning(self.folder, [result] * 2)
    file = self.folder / tuning.FOLDER / 'tuning.csv'
    text = file.read_text(encoding='utf-8').splitlines(keepends=True)
    for damage in ('sort,gspo,high\n', 'sort\n'):
      file.write_text(''.join([*text[:2], damage]), encoding='utf-8')
      with self.assertRaisesRegex(
        config_lib.ConfigError, r'tuning\.csv, line 3: damaged'
      ):
        folder.read_tuning(self.folder)


if __name__ == '__main__':
  absltest.main()

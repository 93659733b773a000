"""Runs without a plan, and a report without its runs, as tables."""

import json

from absl.testing import absltest
import pandas

from hmpo_jax import config as config_lib
from hmpo_jax.analysis import curves
from hmpo_jax.analysis import outcomes
from hmpo_jax.analysis import records
from hmpo_jax.analysis import report
from hmpo_jax.run import folder as run_folder
from tests import plan_case
from tests import simulated_plan

_RISES = {'hmpo': 0.36, 'gspo': 0.3}
_HELDOUT = ['heldout_first', 'heldout_last', 'area']


class OldPlanTest(plan_case.PlanTestCase):
  def test_a_plan_from_before_ladders_and_places_is_read(self):
    self.plan(_RISES, seeds=2)
    new = self.page()
    about = json.loads((self.folder / 'plan.json').read_text('utf-8'))
    for key in ('ladders', 'reference', 'margins', 'family'):
      del about[key]
    for contrast in about['contrasts']:
      del contrast['task'], contrast['minus']
    (self.folder / 'plan.json').write_text(json.dumps(about), 'utf-8')
    self.assertEqual(self.page(), new)

  def test_its_margin_is_kept_and_what_it_pooled_is_refused(self):
    about = simulated_plan.describe(_RISES, 2) | {'margin': 0.3}
    del about['margins'], about['contrasts'][0]['task']
    file = self.folder / 'plan.json'
    file.write_text(json.dumps(about), 'utf-8')
    self.assertEqual(
      records.read(self.folder).about['margins'],
      {'area': 0.3, 'exact_area': 0.02, 'collapse': 0.3, 'rung': 0.25},
    )
    file.write_text(json.dumps(about | {'tasks': ['a', 'b']}), 'utf-8')
    with self.assertRaisesRegex(config_lib.ConfigError, 'names no task'):
      records.read(self.folder)


class OfRunsTest(plan_case.PlanTestCase):
  def setUp(self):
    super().setUp()
    self.plan_ = simulated_plan.write(self.folder, _RISES, seeds=2)
    for run in self.plan_['runs']:
      self._describe(run)

  def _describe(self, run, **changes):
    config = config_lib.default_config()
    config.seed, config.num_steps = run['seed'], self.plan_['horizon']
    for key, value in changes.items():
      config[key] = value
    text = json.dumps(run_folder.described_config(config))
    self._file(run, 'config.json').write_text(text, encoding='utf-8')

  def _file(self, run, name):
    return self.folder / run['folder'] / name

  def _folders(self):
    return {
      name: [
        self.folder / run['folder']
        for run in self.plan_['runs']
        if run['variant'] == name
      ]
      for name in _RISES
    }

  def test_runs_have_the_outcomes_that_their_plan_gives_them(self):
    planned = outcomes.per_seed(records.read(self.folder))
    plan = records.of_runs(self._folders())
    free = outcomes.per_seed(plan)
    order = ['variant', 'seed']
    pandas.testing.assert_frame_equal(
      planned.sort_values(order)[order + _HELDOUT].reset_index(drop=True),
      free.sort_values(order)[order + _HELDOUT].reset_index(drop=True),
    )
    self.assertTrue(plan.about['exploratory'])
    self.assertEqual(plan.about['seeds'], [0, 1])
    curve = curves.Curve('reward', 'held-out reward')
    picture = curves.of_variants(plan, plan.heldout, 'sort', curve)
    (axes,) = picture.axes
    self.assertLen(axes.lines, 6)  # two seeds and a mean of each

  def test_run_that_is_to_be_longer_goes_on(self):
    for run in self.plan_['runs']:
      self._describe(run, num_steps=self.plan_['horizon'] + 1)
    runs = records.of_runs(self._folders()).runs
    self.assertEqual(set(runs['state']), {records.UNFINISHED})

  def test_refuses_what_is_no_comparison(self):
    folders = self._folders()
    twice = {'hmpo': folders['hmpo'] * 2}
    for runs in ({}, {'hmpo': []}, twice):
      with self.assertRaisesRegex(config_lib.ConfigError, 'no comparison'):
        records.of_runs(runs)
    self._describe(self.plan_['runs'][0], num_steps=7)
    with self.assertRaisesRegex(config_lib.ConfigError, 'no comparison'):
      records.of_runs(folders)

  def test_refuses_a_folder_without_a_run(self):
    self._file(self.plan_['runs'][0], 'config.json').unlink()
    with self.assertRaisesRegex(config_lib.ConfigError, 'there is no file'):
      records.of_runs(self._folders())


class OfReportTest(plan_case.PlanTestCase):
  def test_a_report_holds_the_runs_and_evaluations_of_its_plan(self):
    simulated_plan.write(
      self.folder,
      _RISES,
      seeds=3,
      failed={('hmpo', 1): 7},
      stop={('gspo', 2): 0},
    )
    out = report.write(self.folder, draw=False).parent
    (out / 'plan.json').write_bytes((self.folder / 'plan.json').read_bytes())
    read, left = records.read(self.folder), records.of_report(out)
    self.assertEqual(left.about, read.about)
    compare = pandas.testing.assert_frame_equal
    compare(left.runs, read.runs, check_dtype=False)
    compare(
      left.heldout[read.heldout.columns],
      read.heldout,
      rtol=1e-5,
      check_dtype=False,
    )
    self.assertEmpty(left.steps)

  def test_refuses_tables_that_are_not_there(self):
    simulated_plan.write(self.folder, _RISES, seeds=1)
    with self.assertRaisesRegex(config_lib.ConfigError, 'tables of a report'):
      records.of_report(self.folder)
    with self.assertRaisesRegex(config_lib.ConfigError, 'is not a plan'):
      records.of_report(self.folder / 'nowhere')


if __name__ == '__main__':
  absltest.main()

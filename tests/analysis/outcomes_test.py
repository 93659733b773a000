"""What single runs of a plan came to."""

import json

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import pandas

from hmpo_jax import config as config_lib
from hmpo_jax.analysis import measures
from hmpo_jax.analysis import outcomes
from hmpo_jax.analysis import records
from hmpo_jax.analysis import tables
from tests import plan_case
from tests import simulated_plan

_ALIKE = {'hmpo': 0.3, 'gspo': 0.3}
_APART = {'hmpo': 0.36, 'gspo': 0.3}


class OutcomesTest(plan_case.PlanTestCase):
  def test_a_failed_run_is_named_and_scored(self):
    plan, seeds = self.plan(_APART, failed={('hmpo', 3): 12})
    run = seeds[(seeds['variant'] == 'hmpo') & (seeds['seed'] == 3)].iloc[0]
    other = self._healthy('hmpo', 3)
    # As the same run had it up to 10, held to 12, then 0.
    steps, rewards = [0, 5, 10, 12], [*other[:3], other[2]]
    self.assertAlmostEqual(
      run['area'], np.trapezoid(rewards, steps) / 40, places=10
    )
    self.assertEqual((run['heldout_last'], run['exact_last']), (0, 0))
    self.assertEqual((run['collapsed'], run['reached']), (1, 0))
    self.assertEqual(run['steps_to_target'], 40)
    scored = plan.heldout[
      (plan.heldout['variant'] == 'hmpo') & (plan.heldout['seed'] == 3)
    ]
    self.assertEqual(scored['step'].to_list(), list(range(0, 41, 5)))
    self.assertEqual(scored['reward'].to_list()[3:], [0] * 6)
    page = self.page()
    self.assertIn(
      '| sort | hmpo | 3 | failed | 12 | step 7: 50 updates in a row were '
      'skipped \\| NaN |',
      page,
    )
    self.assertIn('| hmpo | 9 finished, 1 failed |', page)
    self.assertIn('1 run failed and counts: held-out reward 0 from', page)

  def _healthy(self, variant, seed):
    folder = self.new_folder()
    simulated_plan.write(folder, _APART, seeds=seed + 1)
    heldout = records.read(folder).heldout
    return heldout.loc[
      (heldout['variant'] == variant) & (heldout['seed'] == seed), 'reward'
    ].to_list()

  def test_a_run_that_failed_before_its_first_step_counts_whole(self):
    _, seeds = self.plan(
      _APART, seeds=2, failed={('hmpo', 0): 0}, about={'failure_reward': 0.1}
    )
    self.assertAlmostEqual(seeds['area'][0], 0.1)
    self.assertEqual(seeds['state'][0], 'failed')
    self.assertIn('held-out reward 0.1 from', self.page())

  def test_a_fall_within_the_margin_is_no_collapse(self):
    _, seeds = self.plan({'hmpo': -0.03, 'gspo': -0.08}, seeds=3)
    self.assertEqual(seeds['collapsed'].to_list(), [0, 0, 0, 1, 1, 1])

  def test_what_was_learned_and_lost_is_a_collapse(self):
    self.plan(_ALIKE, seeds=1)
    lines = self.records('sort/hmpo/0')
    for line in lines:
      # Back to where it started.
      line['eval/reward'] = 0.8 if 10 <= line['step'] < 30 else 0.5
    self.rewrite('sort/hmpo/0', lines)
    seeds = outcomes.per_seed(records.read(self.folder))
    self.assertEqual(seeds['collapsed'].to_list(), [1, 0])

  def test_times_to_the_target_are_censored_at_the_horizon(self):
    plan, seeds = self.plan({'hmpo': 0.6, 'gspo': 0.1}, seeds=4)
    seeds = seeds.set_index(['variant', 'seed'])
    self.assertTrue((seeds.loc['gspo', 'reached'] == 0).all())
    self.assertTrue((seeds.loc['gspo', 'steps_to_target'] == 40).all())
    self.assertTrue((seeds.loc['gspo', 'tokens_to_target'] == 40_000).all())
    curve = plan.heldout[plan.heldout['variant'] == 'hmpo']
    for seed, runs in curve.groupby('seed'):
      first = runs.loc[runs['reward'] >= 0.8, 'step'].min()
      row = seeds.loc[('hmpo', seed)]
      self.assertEqual(row['steps_to_target'], first)
      self.assertEqual(row['episodes_to_target'], 128 * first)
      self.assertEqual(row['tokens_to_target'], 1000 * first)
    targets = tables.targets(seeds.reset_index(), 40, 0.05)
    rows = targets[targets['unit'] == 'steps'].set_index('variant')
    self.assertEqual(rows.loc['gspo', 'mean'], 40)
    self.assertEqual(rows['reached'].to_list(), [4, 0])
    self.assertEqual(
      rows.loc['hmpo', 'mean'], seeds.loc['hmpo', 'steps_to_target'].mean()
    )

  def test_one_evaluation_at_the_target_is_not_enough(self):
    self.plan(_ALIKE, seeds=1)
    lines = self.records('sort/hmpo/0')
    for line in lines:
      line['eval/reward'] = 0.9 if 10 <= line['step'] < 15 else 0.5
    self.rewrite('sort/hmpo/0', lines)
    seeds = outcomes.per_seed(records.read(self.folder))
    self.assertEqual(seeds['reached'][0], 0)

  def test_every_seed_and_measure_stands_in_the_csv(self):
    self.plan(
      _APART,
      seeds=3,
      failed={('gspo', 1): 9},
      about={'tasks': ['sort', 'add'], 'contrasts': []},
    )
    self.page()
    table = pandas.read_csv(self.folder / 'report/tables/seeds.csv')
    self.assertLen(table.drop_duplicates(records.RUN), 2 * 2 * 3)
    self.assertEqual(table['task'].to_list(), ['sort'] * 6 + ['add'] * 6)
    for measure in measures.MEASURES:
      self.assertIn(measure.column, table)
      values = table.loc[table['state'] == 'finished', measure.column]
      self.assertFalse(values.isna().any(), measure)
    rewards = [line['reward/mean'] for line in self.records('sort/hmpo/0')]
    self.assertAlmostEqual(
      table['reward/mean:mean'][0], np.mean(rewards), places=5
    )

  def test_means_are_over_what_was_measured(self):
    self.plan(_ALIKE, seeds=1)
    lines = self.records('sort/hmpo/0')
    for line in lines:
      step = line['step']
      # Compared every tenth step, and every other time a gradient was 0.
      line['mechanism/step'] = at = step - step % 10 or 1
      line['mechanism/cosine'] = 0.9998 if at % 20 else 0.0
      line['ratio/mean'] = 2.0 if step == 5 else 1.0
    self.rewrite('sort/hmpo/0', lines)
    faults = {'step': 5, 'nonfinite': ['ratio/mean']}
    (self.folder / 'runs/sort/hmpo/0/faults.jsonl').write_text(
      json.dumps(faults) + '\n', encoding='utf-8'
    )
    row = outcomes.per_seed(records.read(self.folder)).iloc[0]
    self.assertAlmostEqual(row['mechanism/cosine:mean'], 0.9998)
    self.assertEqual(row['ratio/mean:mean'], 1)

  def test_thirds_are_of_training(self):
    steps, values = np.arange(1, 31.0), np.repeat([1.0, 2.0, 3.0], 10)
    found = [
      measures.REDUCTIONS[f'third_{i}'](steps, values, 30) for i in (1, 2, 3)
    ]
    self.assertEqual(found, [1, 2, 3])
    late = measures.REDUCTIONS['third_3'](steps[:15], values[:15], 30)
    self.assertTrue(np.isnan(late))
    self.assertEqual(measures.REDUCTIONS['tail'](steps, values, 30), 3)

  @parameterized.parameters('', '{}', '{"name": ', '[1]')
  def test_no_plan_is_an_error_of_one_line(self, content):
    if content:
      (self.folder / 'plan.json').write_text(content, encoding='utf-8')
    with self.assertRaisesRegex(config_lib.ConfigError, 'plan.json is not a'):
      records.read(self.folder)


if __name__ == '__main__':
  absltest.main()

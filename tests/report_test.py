"""The report of plan folders whose differences are known."""

import json
import pathlib
import re
import shutil
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import pandas

from hmpo_jax import config as config_lib
from hmpo_jax.analysis import contrasts
from hmpo_jax.analysis import measures
from hmpo_jax.analysis import outcomes
from hmpo_jax.analysis import pictures
from hmpo_jax.analysis import records
from hmpo_jax.analysis import report
from hmpo_jax.analysis import styles
from hmpo_jax.analysis import tables
from tests import simulated_plan

_ALIKE = {'hmpo': .3, 'gspo': .3}
_APART = {'hmpo': .36, 'gspo': .3}


class ReportTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self._folder = self._new_folder()

  def _new_folder(self):
    return pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  def _plan(self, *args, **kwargs):
    simulated_plan.write(self._folder, *args, **kwargs)
    plan = records.read(self._folder)
    return plan, outcomes.per_seed(plan)

  def _contrast(self, *args, outcome='area', **kwargs):
    table = contrasts.make(*self._plan(*args, **kwargs))
    return table[table['outcome'] == outcome].iloc[0]

  def _page(self, draw=False):
    file = report.write(self._folder, draw=draw)
    return file.read_text(encoding='utf-8')

  def test_a_planted_difference_is_found(self):
    row = self._contrast(_APART)
    self.assertEqual(row['verdict'], 'different')
    # 0.06 times the mean height of (1 - exp(-3 s)) on the evaluations' lines.
    steps = np.linspace(0, 1, 9)
    planted = .06 * np.trapezoid(1 - np.exp(-3 * steps), steps)
    self.assertBetween(planted, row['low'] - 1e-3, row['high'] + 1e-3)
    self.assertAlmostEqual(row['mean'], planted, delta=3e-3)
    self.assertEqual(row['p'], 2 / 2**10)
    self.assertEqual(row['adjusted'], 2 * row['p'])
    page = self._page()
    self.assertIn('hmpo - gspo, area under the held-out reward: +0.04', page)
    self.assertIn('n = 10): **different** (p = 0.002, 0.004 after Holm)', page)

  def test_equal_variants_are_not_different(self):
    row = self._contrast(_ALIKE)
    self.assertEqual(row['verdict'], 'equivalent within +-0.02')
    self.assertBetween(0, row['low'], row['high'])
    self.assertNotIn('**different', self._page())

  def test_a_small_difference_is_said_to_be_small(self):
    row = self._contrast({'hmpo': .31, 'gspo': .3})
    self.assertEqual(row['verdict'], 'different, within the margin')

  def test_an_exploratory_plan_has_no_verdicts(self):
    table = contrasts.make(*self._plan(_APART, about={'exploratory': True}))
    self.assertEqual(set(table['verdict']), {'exploratory'})
    self.assertTrue(table['adjusted'].isna().all())
    page = self._page()
    self.assertLess(page.index('**Exploratory.**'), page.index('## What'))
    self.assertNotIn('**different**', page)

  def test_a_contrast_with_an_exploratory_variant_has_no_verdict(self):
    plan = simulated_plan.describe(_APART, 10)
    plan['variants']['hmpo']['exploratory'] = True
    row = self._contrast(_APART, about={'variants': plan['variants']})
    self.assertEqual(row['verdict'], 'exploratory')

  def test_every_other_variant_is_shown_against_the_reference(self):
    table = contrasts.make(*self._plan(_APART | {'p_one': .2}))
    row = table.iloc[-1]
    self.assertEqual((row['name'], row['verdict']),
                     ('p_one - gspo', 'exploratory'))
    self.assertLess(row['high'], 0)
    self.assertTrue(np.isnan(row['p']))

  def test_holm_counts_the_contrasts_with_a_verdict(self):
    plan, seeds = self._plan(_APART, seeds=10)
    table = contrasts.make(plan, seeds)
    one = contrasts.make(
        plan._replace(about=plan.about
                      | {'contrasts': plan.about['contrasts'][:1]}), seeds)
    self.assertEqual(table['adjusted'][0], 2 * one['adjusted'][0])
    self.assertGreater(table['smallest'][0], one['smallest'][0])

  def test_pairing_is_measured(self):
    row = self._contrast(_APART)
    self.assertGreater(row['correlation'], .95)
    self.assertGreater(row['gain'], 20)
    # Tokens part after step 6 + seed % 3: at 7, 8 or 9.
    self.assertEqual(row['diverge'], 8)

  def test_an_arm_that_samples_something_else_is_told(self):
    self._plan(_ALIKE, seeds=3)
    self.assertIn('first rollout? Yes: on 3 of 3', self._page())
    file = self._folder / 'runs/sort/hmpo/1/metrics.jsonl'
    first, rest = file.read_text(encoding='utf-8').split('\n', 1)
    first = json.dumps(json.loads(first) | {'rollout/digest': 5})
    file.write_text(f'{first}\n{rest}', encoding='utf-8')
    self.assertIn('first rollout? **No**: on 2 of 3', self._page())

  def test_a_failed_run_is_named_and_scored(self):
    plan, seeds = self._plan(_APART, failed={('hmpo', 3): 12})
    run = seeds[(seeds['variant'] == 'hmpo') & (seeds['seed'] == 3)].iloc[0]
    other = self._healthy('hmpo', 3)
    # As the same run had it up to 10, held to 12, then 0.
    steps, rewards = [0, 5, 10, 12], [*other[:3], other[2]]
    self.assertAlmostEqual(
        run['area'], np.trapezoid(rewards, steps) / 40, places=10)
    self.assertEqual((run['heldout_last'], run['exact_last']), (0, 0))
    self.assertEqual((run['collapsed'], run['reached']), (1, 0))
    self.assertEqual(run['steps_to_target'], 40)
    scored = plan.heldout[(plan.heldout['variant'] == 'hmpo')
                          & (plan.heldout['seed'] == 3)]
    self.assertEqual(scored['step'].to_list(), list(range(0, 41, 5)))
    self.assertEqual(scored['reward'].to_list()[3:], [0] * 6)
    page = self._page()
    self.assertIn(
        '| sort | hmpo | 3 | failed | 12 | step 7: 50 updates in a row were '
        'skipped \\| NaN |', page)
    self.assertIn('| hmpo | 9 finished, 1 failed |', page)
    self.assertIn('1 run failed and counts: held-out reward 0 from', page)

  def _healthy(self, variant, seed):
    folder = self._new_folder()
    simulated_plan.write(folder, _APART, seeds=seed + 1)
    heldout = records.read(folder).heldout
    return heldout.loc[(heldout['variant'] == variant)
                       & (heldout['seed'] == seed), 'reward'].to_list()

  def test_a_run_that_failed_before_its_first_step_counts_whole(self):
    _, seeds = self._plan(
        _APART, seeds=2, failed={('hmpo', 0): 0}, about={'failure_reward': .1})
    self.assertAlmostEqual(seeds['area'][0], .1)
    self.assertEqual(seeds['state'][0], 'failed')
    self.assertIn('held-out reward 0.1 from', self._page())

  def test_collapse_is_tested_exactly(self):
    rises = {'hmpo': -.2, 'gspo': .3}
    row = self._contrast(rises, outcome='collapse')
    self.assertEqual((row['mean'], row['p']), (1, 2 / 2**10))
    self.assertEqual(row['verdict'], 'different')
    # 6 seeds give 2^-5 > .05 / 2, 7 give 2^-6.
    self.assertEqual(row['smallest'], .7)
    risk = tables.risk(outcomes.per_seed(records.read(self._folder)), .05)
    self.assertEqual(risk['collapsed'].to_list(), [10, 0])
    # Clopper and Pearson of 0 of 10: 1 - .025^(1/10).
    self.assertAlmostEqual(risk['collapsed_high'][1], 1 - .025**.1)
    self.assertAlmostEqual(risk['drawdown'][0], .19, delta=.03)

  def test_a_fall_within_the_margin_is_no_collapse(self):
    _, seeds = self._plan({'hmpo': -.03, 'gspo': -.08}, seeds=3)
    self.assertEqual(seeds['collapsed'].to_list(), [0, 0, 0, 1, 1, 1])

  def test_times_to_the_target_are_censored_at_the_horizon(self):
    plan, seeds = self._plan({'hmpo': .6, 'gspo': .1}, seeds=4)
    seeds = seeds.set_index(['variant', 'seed'])
    self.assertTrue((seeds.loc['gspo', 'reached'] == 0).all())
    self.assertTrue((seeds.loc['gspo', 'steps_to_target'] == 40).all())
    self.assertTrue((seeds.loc['gspo', 'tokens_to_target'] == 40_000).all())
    curve = plan.heldout[plan.heldout['variant'] == 'hmpo']
    for seed, runs in curve.groupby('seed'):
      first = runs.loc[runs['reward'] >= .8, 'step'].min()
      row = seeds.loc[('hmpo', seed)]
      self.assertEqual(row['steps_to_target'], first)
      self.assertEqual(row['episodes_to_target'], 128 * first)
      self.assertEqual(row['tokens_to_target'], 1000 * first)
    targets = tables.targets(seeds.reset_index(), 40, .05)
    rows = targets[targets['unit'] == 'steps'].set_index('variant')
    self.assertEqual(rows.loc['gspo', 'mean'], 40)
    self.assertEqual(rows['reached'].to_list(), [4, 0])
    self.assertEqual(rows.loc['hmpo', 'mean'],
                     seeds.loc['hmpo', 'steps_to_target'].mean())

  def test_one_evaluation_at_the_target_is_not_enough(self):
    self._plan(_ALIKE, seeds=1)
    file = self._folder / 'runs/sort/hmpo/0/metrics.jsonl'
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines:
      line['eval/reward'] = .9 if 10 <= line['step'] < 15 else .5
    file.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    seeds = outcomes.per_seed(records.read(self._folder))
    self.assertEqual(seeds['reached'][0], 0)

  def test_a_plan_that_goes_on_is_rendered_without_verdicts(self):
    plan, seeds = self._plan(
        _APART | {'later': .3},
        stop={('hmpo', 9): 23} | {('later', s): 0 for s in range(10)})
    states = plan.runs['state'].value_counts().to_dict()
    self.assertEqual(states, {'finished': 19, 'running': 1, 'not started': 10})
    table = contrasts.make(plan, seeds)
    self.assertEqual(table['verdict'][0], 'open: 9 of 10 seeds')
    self.assertEqual(table['n'].to_list(), [9, 9, 0])
    self.assertTrue(seeds.loc[seeds['state'] == 'running', 'area'].isna().all())
    page = self._page(draw=True)
    self.assertIn('**Not finished**: 19 finished, 1 running, 10 not started',
                  page)
    self.assertIn('1 of 30 runs is still going (hmpo).', page)
    self.assertTrue(
        (self._folder / 'report/figures/learning-sort.svg').exists())

  def test_a_plan_that_has_not_begun_is_rendered(self):
    self._plan(_ALIKE, 2, stop={(v, s): 0 for v in _ALIKE for s in range(2)})
    page = self._page(draw=True)
    self.assertIn('4 not started', page)
    self.assertIn('no seed has ended in both arms', page)

  def test_one_seed_has_no_interval(self):
    row = self._contrast(_APART, seeds=1)
    self.assertEqual(row['verdict'], "open: 1 seed can't tell")
    page = self._page(draw=True)
    self.assertIn('One seed: no interval', page)
    self.assertIn('(no interval, n = 1)', page)
    self.assertNotRegex(page, r'\b(nan|inf|NaN)\b|[|(] ?None')

  def test_a_damaged_run_is_named_and_the_others_reported(self):
    self._plan(_ALIKE, seeds=3)
    file = self._folder / 'runs/sort/gspo/1/metrics.jsonl'
    file.write_text('{"step": 1}\n{"step": 3}\n', encoding='utf-8')
    plan = records.read(self._folder)
    self.assertEqual(plan.runs['state'].value_counts()['damaged'], 1)
    self.assertIn('line 2: damaged', self._page())

  def test_arms_and_metrics_that_are_missing_leave_gaps(self):
    self._plan(_ALIKE, seeds=3)
    shutil.rmtree(self._folder / 'runs/sort/hmpo')
    for file in self._folder.rglob('metrics.jsonl'):
      lines = [json.loads(line) for line in file.read_text().splitlines()]
      kept = ('step', 'eval/', 'total/', 'reward/', 'skipped/')
      lines = [{
          k: v for k, v in line.items() if k.startswith(kept)
      } for line in lines]
      file.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    page = self._page(draw=True)
    self.assertNotIn('largest attention logit', page)
    self.assertIn("first rollout? The folder doesn't tell", page)
    self.assertIn('3 of 6 runs are not begun (hmpo)', page)

  def test_every_seed_and_measure_stands_in_the_csv(self):
    self._plan(
        _APART,
        seeds=3,
        failed={('gspo', 1): 9},
        about={'tasks': ['sort', 'add']})
    self._page()
    table = pandas.read_csv(self._folder / 'report/tables/seeds.csv')
    self.assertLen(table.drop_duplicates(records.RUN), 2 * 2 * 3)
    self.assertEqual(table['task'].to_list(), ['sort'] * 6 + ['add'] * 6)
    for measure in measures.MEASURES:
      self.assertIn(measure.column, table)
      if measure.key not in _NOT_SIMULATED:
        values = table.loc[table['state'] == 'finished', measure.column]
        self.assertFalse(values.isna().any(), measure)
    self.assertEqual(
        table['reward/mean:mean'].round(4).to_list()[0],
        round(
            float(
                np.mean([
                    record['reward/mean']
                    for record in _records(self._folder / 'runs/sort/hmpo/0')
                ])), 4))

  def test_thirds_are_of_training(self):
    steps, values = np.arange(1, 31.), np.repeat([1., 2., 3.], 10)
    found = [
        measures.REDUCTIONS[f'third_{i}'](steps, values, 30) for i in (1, 2, 3)
    ]
    self.assertEqual(found, [1, 2, 3])
    late = measures.REDUCTIONS['third_3'](steps[:15], values[:15], 30)
    self.assertTrue(np.isnan(late))
    self.assertEqual(measures.REDUCTIONS['tail'](steps, values, 30), 3)

  def test_tasks_are_averaged_for_each_seed(self):
    plan, seeds = self._plan(_APART, seeds=3, about={'tasks': ['sort', 'add']})
    first, second = contrasts.pairs(plan, seeds, 'hmpo', 'gspo', 'area')
    areas = seeds.set_index(records.RUN)['area']
    self.assertAlmostEqual(
        first[1], (areas['sort', 'hmpo', 1] + areas['add', 'hmpo', 1]) / 2)
    self.assertLen(second, 3)
    self.assertIn('| gspo | add | 3 finished |', self._page())

  def test_skips_are_told_by_cause(self):
    self._plan(_ALIKE, seeds=2)
    self.assertIn('No update was skipped for: reward, logprob', self._page())
    file = self._folder / 'runs/sort/hmpo/1/metrics.jsonl'
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[3]['skipped/gradient'] = 5
    file.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    page = self._page()
    self.assertIn('in the 4 runs that began: 5 for gradient.', page)
    self.assertRegex(page, r'\| skipped: gradient \|')

  def test_equal_folders_give_equal_bytes(self):
    self._plan(_APART, seeds=3, failed={('gspo', 1): 9})
    self._page(draw=True)
    folder = self._folder / 'report'
    read = lambda: {
        file.relative_to(folder): file.read_bytes()
        for file in folder.rglob('*')
        if file.is_file()
    }
    before = read()
    (folder / 'figures' / 'old.png').write_bytes(b'')
    self._page(draw=True)
    self.assertEqual(before, read())
    for link in re.findall(r'\]\(([^)]*)\)',
                           before[pathlib.Path('report.md')].decode()):
      self.assertIn(pathlib.Path(link), before)

  def test_tuning_and_phase_diagram_are_shown_where_they_are(self):
    self._plan(_ALIKE, seeds=2)
    (self._folder / 'tuning').mkdir()
    (self._folder / 'oracle').mkdir()
    pandas.DataFrame([{
        'task': 'sort',
        'variant': 'hmpo',
        'learning_rate': rate,
        'eps': eps,
        'seed': seed,
        'area': .5 + rate + seed,
        'failed': False,
        'clip_frac': .1,
        'chosen': rate == .001
    } for rate in (.001, .01) for eps in (.05,) for seed in (0, 1)]).to_csv(
        self._folder / 'tuning/tuning.csv', index=False)
    pandas.DataFrame([{
        'reward': 'share',
        'direction': 'random',
        'length': 2,
        'sigma_nats': sigma,
        'p': p,
        'mse_over_best': 1 + abs(p),
        'best': int(p == 0),
        'tied': 1,
        'best_limit': 1
    } for sigma in (.1, .2) for p in (-1, 0)]).to_csv(
        self._folder / 'oracle/phase.csv', index=False)
    self.assertIn(
        '| sort | hmpo | 0.001 | 0.05 | 1.001 | 10.0% | 0 | 2 | '
        '**yes** |', self._page())
    plan = records.read(self._folder)
    seeds = outcomes.per_seed(plan)
    names = [
        picture.name
        for picture in pictures.make(plan, seeds, contrasts.make(plan, seeds))
    ]
    self.assertContainsSubset(['phase', 'tuning'], names)

  def test_many_variants_have_a_panel_each(self):
    plan, seeds = self._plan({f'v{i}': .1 + .03 * i for i in range(6)}, 2)
    made = {
        picture.name: picture
        for picture in pictures.make(plan, seeds, contrasts.make(plan, seeds))
    }
    learning = made['learning-sort']
    self.assertIn('dashed gray: v1 for comparison', learning.caption)
    self.assertLen(learning.figure.axes, 6)
    with styles.settings():
      styles.save(learning.figure, self._folder / 'learning')

  @parameterized.parameters('', '{}', '{"name": ', '[1]')
  def test_no_plan_is_an_error_of_one_line(self, content):
    if content:
      (self._folder / 'plan.json').write_text(content, encoding='utf-8')
    with self.assertRaisesRegex(config_lib.ConfigError, 'plan.json is not a'):
      records.read(self._folder)


_NOT_SIMULATED = ('mechanism/cosine_current_p0',
                  'mechanism/mask_disagreement_p0_pm1',
                  'mechanism/mask_disagreement_p1_p0')


def _records(folder):
  text = (folder / 'metrics.jsonl').read_text(encoding='utf-8')
  return [json.loads(line) for line in text.splitlines()]


if __name__ == '__main__':
  absltest.main()

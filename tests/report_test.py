"""The report of plan folders whose differences are known."""

import pathlib
import re
import shutil

from absl.testing import absltest
import pandas

from hmpo_jax.analysis import contrasts
from hmpo_jax.analysis import outcomes
from hmpo_jax.analysis import pictures
from hmpo_jax.analysis import records
from hmpo_jax.analysis import styles
from tests import plan_case

_ALIKE = {'hmpo': .3, 'gspo': .3}
_APART = {'hmpo': .36, 'gspo': .3}


class ReportTest(plan_case.PlanTestCase):

  def test_an_exploratory_plan_has_no_verdicts(self):
    table = contrasts.make(*self.plan(_APART, about={'exploratory': True}))
    self.assertEqual(set(table['verdict']), {'exploratory'})
    self.assertTrue(table['adjusted'].isna().all())
    page = self.page()
    self.assertLess(page.index('**Exploratory.**'), page.index('## What'))
    self.assertNotIn('**different**', page)

  def test_an_arm_that_samples_something_else_is_told(self):
    self.plan(_ALIKE, seeds=3)
    self.assertIn('first rollout? Yes: on 3 of 3', self.page())
    first, *rest = self.records('sort/hmpo/1')
    self.rewrite('sort/hmpo/1', [first | {'rollout/digest': 5}, *rest])
    self.assertIn('first rollout? **No**: on 2 of 3', self.page())

  def test_arms_that_are_the_same_runs_are_told(self):
    self.plan(_APART, seeds=3)
    self.assertNotIn('never acted', self.page())
    for seed in range(3):
      self.rewrite(f'sort/hmpo/{seed}', self.records(f'sort/gspo/{seed}'))
      for name in ('summary', 'start'):
        source, target = (
            self.folder / f'sort/{arm}/{seed}/{name}.json'
            for arm in ('gspo', 'hmpo'))
        if source.exists():
          shutil.copy(source, target)
    page = self.page()
    self.assertIn('Arms hmpo and gspo sampled the same tokens in every', page)
    self.assertRegex(page, r'hmpo - gspo \| +never \|')

  def test_a_plan_that_goes_on_is_rendered_without_verdicts(self):
    plan, seeds = self.plan(
        _APART | {'later': .3},
        stop={('hmpo', 9): 23} | {('later', s): 0 for s in range(10)})
    states = plan.runs['state'].value_counts().to_dict()
    self.assertEqual(states, {'finished': 19, 'running': 1, 'not started': 10})
    table = contrasts.make(plan, seeds)
    self.assertEqual(table['verdict'][0], 'open: 9 of 10 seeds')
    self.assertEqual(table['n'].to_list(), [9, 9, 0])
    self.assertTrue(seeds.loc[seeds['state'] == 'running', 'area'].isna().all())
    page = self.page(draw=True)
    self.assertIn('**Not finished**: 19 finished, 1 running, 10 not started',
                  page)
    self.assertIn('1 of 30 runs is still going (hmpo).', page)
    self.assertTrue((self.folder / 'report/figures/learning-sort.svg').exists())

  def test_a_plan_that_has_not_begun_is_rendered(self):
    self.plan(_ALIKE, 2, stop={(v, s): 0 for v in _ALIKE for s in range(2)})
    page = self.page(draw=True)
    self.assertIn('4 not started', page)
    self.assertIn('no seed has ended in both arms', page)

  def test_one_seed_has_no_interval(self):
    row = self.contrast(_APART, seeds=1)
    self.assertEqual(row['verdict'], "open: 1 seed can't tell")
    page = self.page(draw=True)
    self.assertIn('One seed: no interval', page)
    self.assertIn('exact test of 1 seed finds nothing', page)
    self.assertIn('(no interval, n = 1)', page)
    self.assertNotRegex(page, r'\b(nan|inf|NaN)\b|[|(] ?None')

  def test_a_damaged_run_is_named_and_the_others_reported(self):
    self.plan(_ALIKE, seeds=3)
    self.rewrite('sort/gspo/1', [{'step': 1}, {'step': 3}])
    plan = records.read(self.folder)
    self.assertEqual(plan.runs['state'].value_counts()['damaged'], 1)
    self.assertIn('line 2: damaged', self.page())

  def test_a_finished_run_that_lost_records_is_damaged(self):
    self.plan(_ALIKE, seeds=3)
    kept = self.records('sort/gspo/1')[:-1]
    self.rewrite('sort/gspo/1', kept)
    plan = records.read(self.folder)
    self.assertEqual(plan.runs['state'].value_counts()['damaged'], 1)

  def test_arms_and_metrics_that_are_missing_leave_gaps(self):
    self.plan(_ALIKE, seeds=3)
    shutil.rmtree(self.folder / 'runs/sort/hmpo')
    kept = ('step', 'eval/', 'total/', 'reward/', 'skipped/')
    for run in ('sort/gspo/0', 'sort/gspo/1', 'sort/gspo/2'):
      self.rewrite(run, [{
          key: value for key, value in line.items() if key.startswith(kept)
      } for line in self.records(run)])
    page = self.page(draw=True)
    self.assertNotIn('largest attention logit', page)
    self.assertIn("first rollout? The folder doesn't tell", page)
    self.assertIn('3 of 6 runs are not begun (hmpo)', page)

  def test_skips_are_told_by_cause(self):
    self.plan(_ALIKE, seeds=2)
    self.assertIn('No update was skipped for: reward, logprob', self.page())
    lines = self.records('sort/hmpo/1')
    lines[3]['skipped/gradient'] = 5
    self.rewrite('sort/hmpo/1', lines)
    page = self.page()
    self.assertIn('in the 4 runs that began: 5 for gradient.', page)
    self.assertRegex(page, r'\| skipped: gradient \|')

  def test_equal_folders_give_equal_bytes(self):
    self.plan(_APART, seeds=3, failed={('gspo', 1): 9})
    self.page(draw=True)
    folder = self.folder / 'report'
    read = lambda: {
        file.relative_to(folder): file.read_bytes()
        for file in folder.rglob('*')
        if file.is_file()
    }
    before = read()
    (folder / 'figures' / 'old.png').write_bytes(b'')
    self.page(draw=True)
    self.assertEqual(before, read())
    for link in re.findall(r'\]\(([^)]*)\)',
                           before[pathlib.Path('report.md')].decode()):
      self.assertIn(pathlib.Path(link), before)

  def test_tuning_and_phase_diagram_are_shown_where_they_are(self):
    self.plan(_ALIKE, seeds=2)
    (self.folder / 'tuning').mkdir()
    (self.folder / 'oracle').mkdir()
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
        self.folder / 'tuning/tuning.csv', index=False)
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
        self.folder / 'oracle/phase.csv', index=False)
    self.assertIn(
        '| sort | hmpo | 0.001 | 0.05 | 1.001 | 10.0% | 0 | 2 | '
        '**yes** |', self.page())
    plan = records.read(self.folder)
    seeds = outcomes.per_seed(plan)
    names = [
        picture.name
        for picture in pictures.make(plan, seeds, contrasts.make(plan, seeds))
    ]
    self.assertContainsSubset(['phase-share', 'tuning'], names)

  def test_many_variants_have_a_panel_each(self):
    plan, seeds = self.plan({f'v{i}': .1 + .03 * i for i in range(6)}, 2)
    made = {
        picture.name: picture
        for picture in pictures.make(plan, seeds, contrasts.make(plan, seeds))
    }
    learning = made['learning-sort']
    self.assertIn('dashed gray: v1 for comparison', learning.caption)
    self.assertLen(learning.figure.axes, 6)
    with styles.settings():
      styles.save(learning.figure, self.folder / 'learning')


if __name__ == '__main__':
  absltest.main()

"""The report of plan folders whose differences are known."""

import json
import pathlib
import re
import shutil

from absl.testing import absltest
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
from hmpo_jax.run import folder as run_folder
from tests import plan_case

_ALIKE = {'hmpo': 0.3, 'gspo': 0.3}
_APART = {'hmpo': 0.36, 'gspo': 0.3}


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
    self.assertNotIn('changed no token', self.page())
    for seed in range(3):
      self.rewrite(f'sort/hmpo/{seed}', self.records(f'sort/gspo/{seed}'))
      for name in ('summary', 'start'):
        source, target = (
          self.folder / f'sort/{arm}/{seed}/{name}.json'
          for arm in ('gspo', 'hmpo')
        )
        if source.exists():
          shutil.copy(source, target)
    page = self.page()
    self.assertIn('Arms hmpo and gspo sampled the same tokens in every', page)
    self.assertRegex(page, r'hmpo - gspo \| +never \|')

  def test_a_plan_that_goes_on_is_rendered_without_verdicts(self):
    plan, seeds = self.plan(
      _APART | {'later': 0.3},
      stop={('hmpo', 9): 23} | {('later', s): 0 for s in range(10)},
    )
    states = plan.runs['state'].value_counts().to_dict()
    self.assertEqual(
      states, {'finished': 19, 'unfinished': 1, 'not started': 10}
    )
    table = contrasts.make(plan, seeds)
    self.assertEqual(table['verdict'][0], 'open: 9 of 10 seeds')
    self.assertEqual(table['n'].to_list(), [9, 9, 0])
    self.assertTrue(
      seeds.loc[seeds['state'] == 'unfinished', 'area'].isna().all()
    )
    page = self.page(draw=True)
    self.assertIn(
      '**Not finished**: 19 finished, 1 unfinished, 10 not started; the '
      'unfinished are at step 23 of 40.',
      page,
    )
    self.assertIn('1 of 30 runs has not ended (hmpo).', page)
    self.assertTrue((self.folder / 'report/figures/learning-sort.svg').exists())

  def test_a_plan_that_has_not_begun_is_rendered(self):
    self.plan(_ALIKE, 2, stop={(v, s): 0 for v in _ALIKE for s in range(2)})
    page = self.page(draw=True)
    self.assertIn('4 not started', page)
    self.assertIn('no seed has ended in both arms', page)

  def test_runs_that_were_interrupted_have_no_end(self):
    plan, seeds = self.plan(
      _APART, 2, stop={(v, s): 4 + 3 * s for v in _APART for s in range(2)}
    )
    self.assertFalse(plan.is_whole)
    for column in (
      'heldout_last',
      'exact_last',
      'heldout_change',
      'reward/mean:tail',
      'mean/p:last',
    ):
      self.assertTrue(seeds[column].isna().all(), column)
    page = self.page(draw=True)
    self.assertIn('4 unfinished; the unfinished are at step 4 to 7 of 40', page)
    self.assertNotRegex(
      page, 'running|still going|went from|to the end|ended at'
    )
    self.assertRegex(
      page,
      r'No run of these has ended; when last evaluated, their held-out '
      r'reward was hmpo 0\.\d+ \(step 0 to 5, n = 2\); gspo',
    )

  def test_what_falls_in_every_arm_is_said_to(self):
    self.plan(_APART, seeds=3)
    self.assertIn('answers that are right **rose in every arm**: ', self.page())
    for variant, last in (('hmpo', 0.03), ('gspo', 0.02)):
      for seed in range(3):
        name = f'sort/{variant}/{seed}'
        self.rewrite(
          name,
          [
            line | {'eval/exact': last if line['eval/step'] else 0.063}
            for line in self.records(name)
          ],
        )
    page = self.page()
    self.assertIn(
      'right **fell in every arm**: hmpo from 6.3% to 3.0%, by −3.3 points '
      '(in every run, n = 3); gspo from 6.3% to 2.0%, by −4.3 points',
      page,
    )
    self.assertIn(
      'the held-out reward **rose in every arm**: hmpo from 0.4', page
    )
    self.assertIn('went **opposite ways** in every arm', page)
    self.assertRegex(page, r'exact match, step 0 \|')

  def test_settings_stand_in_the_text(self):
    self.plan(_APART, seeds=2)
    self.assertNotIn('learning_rate', self.page())
    for variant, tau in (('hmpo', 8.0), ('gspo', float('inf'))):
      for seed in range(2):
        config = config_lib.default_config()
        config.optim.tau, config.optim.monitor_tau = tau, 12.0
        config.optim.learning_rate = 3e-3
        folder = self.folder / f'runs/sort/{variant}/{seed}'
        (folder / 'config.json').write_text(
          json.dumps(run_folder.described_config(config)), encoding='utf-8'
        )
    page = self.page()
    self.assertIn(
      '- learning_rate = 0.003; eps_low = 0.05; eps_high = 0.05; tau = 8 '
      '(hmpo), inf (gspo); monitor_tau = 12\n',
      page,
    )
    self.assertIn('above monitor_tau = 12: hmpo 0 of 2', page)
    self.assertIn('QK-clip changed (tau = 8 (hmpo), inf (gspo)) was', page)
    self.assertIn('low and high (eps_low = 0.05, eps_high = 0.05): hmpo', page)

  def test_no_interval_is_impossible(self):
    plan, _ = self.plan(_APART, seeds=3)
    rng = np.random.default_rng(0)
    for run in plan.about['runs']:
      name = f'sort/{run["variant"]}/{run["seed"]}'
      cosine = float(rng.choice([0.4, 0.97, 0.99]))
      exploded = float(run['seed'] > 0)
      self.rewrite(
        name,
        [
          line
          | {
            'mechanism/cosine': cosine,
            'mechanism/cosine_unclipped': cosine,
            'qk/exploded': exploded,
            'clip/low_frac': 1 - cosine,
            'eval/exact': max(0.0, cosine - 0.9),
          }
          for line in self.records(name)
        ],
      )
    page = self.page()
    self.assertIn('| 67% (9% to 99%) |', page)
    rows = pandas.read_csv(self.folder / 'report/tables/variants.csv')
    for row in rows.itertuples():
      low, high = measures.bounds(row.column.split(':')[0])
      self.assertBetween(row.low, low, row.mean, row.column)
      self.assertBetween(row.high, row.mean, high, row.column)
    cut = rows[
      (rows['column'] == 'mechanism/cosine:mean') & (rows['high'] == 1)
    ]
    self.assertNotEmpty(cut)
    for share in re.findall(r'([−\d.]+)%', page.split('## Contrasts')[0]):
      self.assertLessEqual(float(share.replace('−', '-')), 100)
    self.assertNotRegex(page.split('### Advantages')[1], '−[0-9.]+%')

  def test_means_say_how_many_steps_they_stand_on(self):
    self.plan(_ALIKE, seeds=2)
    self.assertNotIn('Not every step has these', self.page())
    for seed in range(2):
      lines = self.records(f'sort/hmpo/{seed}')
      self.rewrite(
        f'sort/hmpo/{seed}',
        [
          line
          | {
            'mechanism/step': line['step'],
            'mechanism/cosine': 0.9998 * (line['step'] % 4 == 0),
          }
          for line in lines
        ],
      )
    page = self.page()
    self.assertIn(
      'with the clip it was hmpo 1.000 (in every run, n = 2, defined '
      'in 20 of 80 batches); gspo 0.900',
      page.replace('W', 'w'),
    )
    self.assertIn('*p = 0 and -1, clipped*: hmpo 20 of 80.', page)

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
    run = self.folder / 'runs/sort/hmpo/0'
    (run / 'summary.json').unlink()
    (run / 'failed.json').write_text('{"step": "x", "reason": ""}', 'utf-8')
    plan = records.read(self.folder)
    self.assertEqual(plan.runs['state'].value_counts()['damaged'], 2)

  def test_a_report_may_lie_in_the_folder_of_the_plan_itself(self):
    self.plan(_ALIKE, seeds=1)
    file = report.write(self.folder, self.folder, draw=False)
    self.assertEqual(file, self.folder / 'report.md')

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
      self.rewrite(
        run,
        [
          {key: value for key, value in line.items() if key.startswith(kept)}
          for line in self.records(run)
        ],
      )
    page = self.page(draw=True)
    self.assertNotIn('largest attention logit', page)
    self.assertIn("first rollout? The folder doesn't tell", page)
    self.assertIn('3 of 6 runs have not begun (hmpo)', page)

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
    for link in re.findall(
      r'\]\(([^)]*)\)', before[pathlib.Path('report.md')].decode()
    ):
      self.assertIn(pathlib.Path(link), before)

  def test_tuning_and_phase_diagram_are_shown_where_they_are(self):
    self.plan(_ALIKE, seeds=2)
    (self.folder / 'tuning').mkdir()
    (self.folder / 'oracle').mkdir()
    pandas.DataFrame(
      [
        {
          'task': 'sort',
          'variant': variant,
          'learning_rate': rate,
          'eps': eps,
          'seed': seed,
          'area': 0.5 + rate + seed - 0.1 * (variant == 'gspo'),
          'failed': False,
          'clip_frac': 0.1,
          'chosen': rate == 0.001,
        }
        for variant in ('hmpo', 'gspo')
        for rate in (0.001, 0.01)
        for eps in (0.05,)
        for seed in (0, 1)
      ]
    ).to_csv(self.folder / 'tuning/tuning.csv', index=False)
    pandas.DataFrame(
      [
        {
          'reward': 'share',
          'direction': 'random',
          'length': 2,
          'sigma_nats': sigma,
          'p': p,
          'mse_over_best': 1 + abs(p),
          'best': int(p == 0),
          'tied': 1,
          'best_limit': 1,
        }
        for sigma in (0.1, 0.2)
        for p in (-1, 0)
      ]
    ).to_csv(self.folder / 'oracle/phase.csv', index=False)
    page = self.page()
    self.assertIn(
      '| sort | hmpo | 0.001 | 0.05 | 1.001 | 10.0% | 0 | 2 | **yes** |', page
    )
    self.assertIn('hmpo - gspo at each point that both were run at', page)
    self.assertIn('| sort | 0.01 | 0.05 | +0.100 | +0.100 | 2 |', page)
    self.assertNotIn('Where a point has more seeds', page)
    final = 'sort,hmpo,0.001,0.05,7,.5,False,.1,True\n'
    with open(self.folder / 'tuning/tuning.csv', 'a', encoding='utf-8') as file:
      file.write(final)
    self.assertIn('Where a point has more seeds', self.page())
    plan = records.read(self.folder)
    seeds = outcomes.per_seed(plan)
    names = [
      picture.name
      for picture in pictures.make(plan, seeds, contrasts.make(plan, seeds))
    ]
    self.assertContainsSubset(['phase-share', 'tuning'], names)

  def test_many_variants_have_a_panel_each(self):
    plan, seeds = self.plan({f'v{i}': 0.1 + 0.03 * i for i in range(6)}, 2)
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

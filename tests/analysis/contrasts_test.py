"""Contrasts of plans whose differences are planted."""

from absl.testing import absltest
import numpy as np

from hmpo_jax.analysis import contrasts
from hmpo_jax.analysis import kinds
from hmpo_jax.analysis import outcomes
from hmpo_jax.analysis import records
from hmpo_jax.analysis import rungs
from hmpo_jax.analysis import tables
from tests import plan_case
from tests import simulated_plan

_ALIKE = {'hmpo': 0.3, 'gspo': 0.3}
_APART = {'hmpo': 0.36, 'gspo': 0.3}


class ContrastsTest(plan_case.PlanTestCase):
  def test_a_planted_difference_is_found(self):
    row = self.contrast(_APART)
    self.assertEqual(row['verdict'], 'different')
    # 0.06 times the mean height of (1 - exp(-3 s)) on the evaluations' lines.
    steps = np.linspace(0, 1, 9)
    planted = 0.06 * np.trapezoid(1 - np.exp(-3 * steps), steps)
    self.assertBetween(planted, row['low'] - 1e-3, row['high'] + 1e-3)
    self.assertAlmostEqual(row['mean'], planted, delta=3e-3)
    self.assertEqual(row['p'], 2 / 2**10)
    self.assertEqual(row['adjusted'], 2 * row['p'])
    page = self.page()
    self.assertIn('hmpo - gspo, area under the held-out reward: +0.04', page)
    self.assertIn('n = 10): **different** (p = 0.002, 0.004 after Holm)', page)

  def test_equal_variants_are_not_different(self):
    row = self.contrast(_ALIKE)
    self.assertEqual(row['verdict'], 'equivalent within +-0.02')
    self.assertBetween(0, row['low'], row['high'])
    self.assertNotIn('**different', self.page())

  def test_a_small_difference_is_said_to_be_small(self):
    row = self.contrast({'hmpo': 0.31, 'gspo': 0.3})
    self.assertEqual(row['verdict'], 'different, within the margin')

  def test_a_contrast_with_an_exploratory_variant_has_no_verdict(self):
    plan = simulated_plan.describe(_APART, 10)
    plan['variants']['hmpo']['exploratory'] = True
    row = self.contrast(_APART, about={'variants': plan['variants']})
    self.assertEqual(row['verdict'], 'exploratory')

  def test_every_other_variant_is_shown_against_the_reference(self):
    table = contrasts.make(*self.plan(_APART | {'p_one': 0.2}))
    row = table.iloc[-1]
    self.assertEqual(
      (row['name'], row['verdict']), ('p_one - gspo', 'exploratory')
    )
    self.assertLess(row['high'], 0)
    self.assertTrue(np.isnan(row['p']))

  def test_the_plan_may_name_the_reference(self):
    table = contrasts.make(
      *self.plan(_APART | {'p_one': 0.2}, seeds=3, about={'reference': 'p_one'})
    )
    self.assertEqual(
      table['name'].to_list()[2:], ['hmpo - p_one', 'gspo - p_one']
    )

  def test_a_contrast_is_not_shown_again_turned_round(self):
    asked = [
      {
        'name': f'{a} - {b}',
        'variant': a,
        'baseline': b,
        'outcome': 'area',
        'task': '',
        'minus': '',
      }
      for a, b in (('hmpo', 'gspo'), ('gspo', 'free'))
    ]
    table = contrasts.make(
      *self.plan(_APART | {'free': 0.3}, seeds=3, about={'contrasts': asked})
    )
    self.assertEqual(table['name'].to_list(), ['hmpo - gspo', 'gspo - free'])

  def test_no_difference_is_larger_than_rewards_can_be_apart(self):
    row = self.contrast({'hmpo': 0.5, 'gspo': -0.5}, seeds=2)
    self.assertBetween(row['low'], -1, row['mean'])
    self.assertBetween(row['high'], row['mean'], 1)
    self.assertTrue(np.isnan(row['smallest']))

  def test_holm_counts_the_contrasts_with_a_verdict(self):
    plan, seeds = self.plan(_APART, seeds=10)
    table = contrasts.make(plan, seeds)
    one = contrasts.make(
      plan._replace(
        about=plan.about | {'contrasts': plan.about['contrasts'][:1]}
      ),
      seeds,
    )
    self.assertEqual(table['adjusted'][0], 2 * one['adjusted'][0])
    self.assertGreater(table['smallest'][0], one['smallest'][0])

  def test_pairing_is_measured(self):
    row = self.contrast(_APART)
    self.assertGreater(row['correlation'], 0.95)
    self.assertGreater(row['gain'], 20)
    # Tokens part after step 6 + seed % 3: at 7, 8 or 9.
    self.assertEqual(row['diverge'], 8)

  def test_collapse_is_tested_exactly(self):
    rises = {'hmpo': -0.2, 'gspo': 0.3}
    row = self.contrast(rises, outcome='collapse')
    self.assertEqual((row['mean'], row['p']), (1, 2 / 2**10))
    self.assertEqual(row['verdict'], 'different')
    # 6 seeds give 2^-5 > .05 / 2, 7 give 2^-6.
    self.assertEqual(row['smallest'], 0.7)
    risk = tables.risk(outcomes.per_seed(records.read(self.folder)), 0.05)
    self.assertEqual(risk['collapsed'].to_list(), [10, 0])
    # Clopper and Pearson of 0 of 10: 1 - .025^(1/10).
    self.assertAlmostEqual(risk['collapsed_high'][1], 1 - 0.025**0.1)
    self.assertAlmostEqual(risk['drawdown'][0], 0.19, delta=0.03)

  def test_each_task_has_its_own(self):
    rises = {'hmpo': {'sort': 0.36, 'add': 0.2}, 'gspo': 0.3}
    asked = _asked('hmpo', 'gspo', 'area', task='add')
    plan, seeds = self.plan(
      rises, about={'tasks': ['sort', 'add'], 'contrasts': [asked]}
    )
    table = contrasts.make(plan, seeds)
    self.assertEqual(
      table['name'].to_list(), ['hmpo - gspo on add', 'hmpo - gspo on sort']
    )
    self.assertEqual(table['verdict'].to_list(), ['different', 'exploratory'])
    self.assertLess(table['high'][0], 0)
    self.assertGreater(table['low'][1], 0)
    first, _ = contrasts.pairs(plan, seeds, asked)
    areas = seeds.set_index(records.RUN)['area']
    self.assertEqual(first[1], areas['add', 'hmpo', 1])
    self.assertIn('| gspo | add | 10 finished |', self.page())

  def test_an_interaction_is_a_difference_of_differences(self):
    rises = {'hmpo': {'sort': 0.36, 'add': 0.26}, 'gspo': 0.3}
    asked = _asked('hmpo', 'gspo', 'area', task='sort', minus='add')
    plan, seeds = self.plan(
      rises, about={'tasks': ['sort', 'add'], 'contrasts': [asked]}
    )
    row = contrasts.make(plan, seeds).iloc[0]
    areas = seeds.set_index(records.RUN)['area']
    found = [
      (areas['sort', 'hmpo', s] - areas['sort', 'gspo', s])
      - (areas['add', 'hmpo', s] - areas['add', 'gspo', s])
      for s in range(10)
    ]
    self.assertAlmostEqual(row['mean'], np.mean(found), delta=1e-12)
    self.assertEqual(row['verdict'], 'different')
    self.assertIn('hmpo - gspo on sort minus on add', self.page())
    # A seed counts where all four runs have ended.
    (self.folder / 'runs/add/hmpo/1/summary.json').unlink()
    plan = records.read(self.folder)
    first, _ = contrasts.pairs(plan, outcomes.per_seed(plan), asked)
    self.assertLen(first, 9)

  def test_the_whole_family_is_corrected_for(self):
    plan, seeds = self.plan(_APART)
    wide = plan._replace(about=plan.about | {'family': 5})
    table = contrasts.make(wide, seeds)
    self.assertEqual(table['adjusted'][0], 5 * table['p'][0])
    self.assertGreater(
      table['smallest'][0], contrasts.make(plan, seeds)['smallest'][0]
    )

  def test_what_is_open_decides_nothing(self):
    tasks = ['sort', 'copy']
    asked = [_asked('hmpo', 'gspo', 'area', task=task) for task in tasks]
    apart = {'hmpo': {'sort': 0.31, 'copy': 0.36}, 'gspo': 0.3}
    plan, seeds = self.plan(
      apart, seeds=10, about={'tasks': tasks, 'contrasts': asked}
    )
    # The other task has a seed to go: its p, as small, takes no first place.
    late = (seeds['task'] == 'copy') & (seeds['seed'] == 9)
    seeds.loc[late, 'state'] = records.UNFINISHED
    table = contrasts.make(plan, seeds)
    self.assertEqual(table['adjusted'][0], 2 * table['p'][0])
    self.assertTrue(np.isnan(table['adjusted'][1]))
    self.assertEqual(table['verdict'][1], 'open: 9 of 10 seeds')

  def test_margins_are_those_of_the_outcome(self):
    row = self.contrast(
      _ALIKE,
      about={
        'margins': {
          'area': 0.001,
          'collapse': 0.5,
          'exact_area': 0.02,
          'rung': 0.25,
        }
      },
    )
    self.assertEqual(row['verdict'], 'undecided')


class LadderContrastsTest(plan_case.PlanTestCase):
  def _ladder(self, rises):
    asked = [
      _asked('hmpo', 'gspo', outcome, task='ladder')
      for outcome in ('area', 'rung')
    ]
    return self.plan(
      rises,
      seeds=8,
      about={
        'tasks': list(_RATES),
        'ladders': {'ladder': _RATES},
        'contrasts': asked,
      },
    )

  def test_area_is_the_mean_over_rungs_and_a_planted_rung_is_found(self):
    # gspo collapses from the second rung on, hmpo from the third.
    falls = lambda k: {t: 0.3 if i < k else -0.3 for i, t in enumerate(_RATES)}
    plan, seeds = self._ladder({'hmpo': falls(2), 'gspo': falls(1)})
    area, rung = contrasts.make(plan, seeds).to_dict('records')
    areas = seeds.set_index(records.RUN)['area']
    first, _ = contrasts.pairs(plan, seeds, plan.about['contrasts'][0])
    self.assertAlmostEqual(
      first[3], np.mean([areas[task, 'hmpo', 3] for task in _RATES])
    )
    self.assertEqual(area['verdict'], 'different')
    self.assertEqual((rung['mean'], rung['p']), (1, 2 / 2**8))
    self.assertEqual(rung['verdict'], 'different')
    page = self.page()
    self.assertIn('critical rung, log2 of the learning rate: +1.00', page)
    self.assertIn('| ladder | hmpo | 8 |', page)
    self.assertIn('half of the seeds collapse: hmpo at 0.0028', page)

  def test_what_lies_beyond_the_ladder_is_said(self):
    plan, seeds = self._ladder({'hmpo': 0.3, 'gspo': -0.3})
    table = rungs.per_variant(plan, seeds)
    self.assertEqual(table['above'].to_list(), [8, 0])
    self.assertEqual(table['below'].to_list(), [0, 8])
    self.assertEqual(table['half'].to_list(), [np.inf, 0])
    self.assertIn('above the ladder', self.page())
    self.assertEqual(
      rungs.range_of(plan.about, 'ladder'), (np.log2(5e-4), np.log2(4e-3))
    )

  def test_an_interaction_of_rungs_is_within_the_range_of_both(self):
    rates = _RATES | {'y1': 1e-3, 'y16': 1.6e-2}
    about = {
      'tasks': list(rates),
      'ladders': {
        'x': _RATES,
        'y': {task: rates[task] for task in ('y1', 'y16')},
      },
      'contrasts': [_asked('hmpo', 'gspo', 'rung', task='x', minus='y')],
    }
    rises = {'hmpo': -0.3, 'gspo': 0.3}
    row = contrasts.make(
      *self.plan(rises, 2, failed={('gspo', 1): 1}, about=about)
    ).iloc[0]
    # 1e-3 / 2 against 4e-3, less 1e-3 / 16 against 1.6e-2; nothing by a seed
    # that fails everywhere. Two seeds tell no more than the ladders' ends.
    self.assertAlmostEqual(row['mean'], (-3 + 8) / 2)
    np.testing.assert_allclose((row['low'], row['high']), (-11, 11))

  def test_seeds_without_all_rungs_wait(self):
    plan, _ = self._ladder({'hmpo': 0.3, 'gspo': 0.3})
    (self.folder / 'runs/x2/hmpo/1/summary.json').unlink()
    plan = records.read(self.folder)
    table = contrasts.make(plan, outcomes.per_seed(plan))
    self.assertEqual(table['n'].to_list(), [7, 7])
    self.assertIn('open: 7 of 8', table['verdict'][0])


_RATES = {'x1': 1e-3, 'x2': 2e-3, 'x4': 4e-3}


def _asked(variant, baseline, outcome, *, task='', minus=''):
  """A contrast as it stands in plan.json."""
  return {
    'name': kinds.name_of(variant, baseline, task, minus),
    'variant': variant,
    'baseline': baseline,
    'outcome': outcome,
    'task': task,
    'minus': minus,
  }


if __name__ == '__main__':
  absltest.main()

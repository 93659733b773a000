"""Contrasts of plans whose differences are planted."""

from absl.testing import absltest
import numpy as np

from hmpo_jax.analysis import contrasts
from hmpo_jax.analysis import outcomes
from hmpo_jax.analysis import records
from hmpo_jax.analysis import tables
from tests import plan_case
from tests import simulated_plan

_ALIKE = {'hmpo': .3, 'gspo': .3}
_APART = {'hmpo': .36, 'gspo': .3}


class ContrastsTest(plan_case.PlanTestCase):

  def test_a_planted_difference_is_found(self):
    row = self.contrast(_APART)
    self.assertEqual(row['verdict'], 'different')
    # 0.06 times the mean height of (1 - exp(-3 s)) on the evaluations' lines.
    steps = np.linspace(0, 1, 9)
    planted = .06 * np.trapezoid(1 - np.exp(-3 * steps), steps)
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
    row = self.contrast({'hmpo': .31, 'gspo': .3})
    self.assertEqual(row['verdict'], 'different, within the margin')

  def test_a_contrast_with_an_exploratory_variant_has_no_verdict(self):
    plan = simulated_plan.describe(_APART, 10)
    plan['variants']['hmpo']['exploratory'] = True
    row = self.contrast(_APART, about={'variants': plan['variants']})
    self.assertEqual(row['verdict'], 'exploratory')

  def test_every_other_variant_is_shown_against_the_reference(self):
    table = contrasts.make(*self.plan(_APART | {'p_one': .2}))
    row = table.iloc[-1]
    self.assertEqual((row['name'], row['verdict']),
                     ('p_one - gspo', 'exploratory'))
    self.assertLess(row['high'], 0)
    self.assertTrue(np.isnan(row['p']))

  def test_a_contrast_is_not_shown_again_turned_round(self):
    asked = [{
        'name': f'{a} - {b}',
        'variant': a,
        'baseline': b,
        'outcome': 'area'
    } for a, b in (('hmpo', 'gspo'), ('gspo', 'free'))]
    table = contrasts.make(
        *self.plan(_APART | {'free': .3}, seeds=3, about={'contrasts': asked}))
    self.assertEqual(table['name'].to_list(), ['hmpo - gspo', 'gspo - free'])

  def test_no_difference_is_larger_than_rewards_can_be_apart(self):
    row = self.contrast({'hmpo': .5, 'gspo': -.5}, seeds=2)
    self.assertBetween(row['low'], -1, row['mean'])
    self.assertBetween(row['high'], row['mean'], 1)
    self.assertTrue(np.isnan(row['smallest']))

  def test_holm_counts_the_contrasts_with_a_verdict(self):
    plan, seeds = self.plan(_APART, seeds=10)
    table = contrasts.make(plan, seeds)
    one = contrasts.make(
        plan._replace(about=plan.about
                      | {'contrasts': plan.about['contrasts'][:1]}), seeds)
    self.assertEqual(table['adjusted'][0], 2 * one['adjusted'][0])
    self.assertGreater(table['smallest'][0], one['smallest'][0])

  def test_pairing_is_measured(self):
    row = self.contrast(_APART)
    self.assertGreater(row['correlation'], .95)
    self.assertGreater(row['gain'], 20)
    # Tokens part after step 6 + seed % 3: at 7, 8 or 9.
    self.assertEqual(row['diverge'], 8)

  def test_collapse_is_tested_exactly(self):
    rises = {'hmpo': -.2, 'gspo': .3}
    row = self.contrast(rises, outcome='collapse')
    self.assertEqual((row['mean'], row['p']), (1, 2 / 2**10))
    self.assertEqual(row['verdict'], 'different')
    # 6 seeds give 2^-5 > .05 / 2, 7 give 2^-6.
    self.assertEqual(row['smallest'], .7)
    risk = tables.risk(outcomes.per_seed(records.read(self.folder)), .05)
    self.assertEqual(risk['collapsed'].to_list(), [10, 0])
    # Clopper and Pearson of 0 of 10: 1 - .025^(1/10).
    self.assertAlmostEqual(risk['collapsed_high'][1], 1 - .025**.1)
    self.assertAlmostEqual(risk['drawdown'][0], .19, delta=.03)

  def test_tasks_are_averaged_for_each_seed(self):
    plan, seeds = self.plan(_APART, seeds=3, about={'tasks': ['sort', 'add']})
    first, second = contrasts.pairs(plan, seeds, 'hmpo', 'gspo', 'area')
    areas = seeds.set_index(records.RUN)['area']
    self.assertAlmostEqual(
        first[1], (areas['sort', 'hmpo', 1] + areas['add', 'hmpo', 1]) / 2)
    self.assertLen(second, 3)
    self.assertIn('| gspo | add | 3 finished |', self.page())
    (self.folder / 'runs/add/hmpo/1/summary.json').unlink()
    plan = records.read(self.folder)
    first, _ = contrasts.pairs(plan, outcomes.per_seed(plan), 'hmpo', 'gspo',
                               'area')
    self.assertLen(first, 2)


if __name__ == '__main__':
  absltest.main()

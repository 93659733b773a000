"""Drawdowns by hand, and what is known before them."""

from absl.testing import absltest
import numpy as np
import pandas

from hmpo_jax import config as config_lib
from hmpo_jax.analysis import drawdowns
from tests import simulated_drawdowns


class FirstTest(absltest.TestCase):
  def test_is_the_step_whose_mean_is_below_the_best_by_the_margin(self):
    # From step 21 on .6 is .4: means of five fall by .04 a step, .08 in step
    # 22; changes are 0 but for one, so the margin alone decides.
    rewards = np.where(np.arange(1, 41) > 20, 0.4, 0.6)
    self.assertEqual(drawdowns.first(rewards, 0.05), 22)
    self.assertEqual(drawdowns.first(rewards, 0.15), 24)
    self.assertIsNone(drawdowns.first(rewards, 0.21))
    # A rise is none, and what was never reached can't be lost.
    self.assertIsNone(drawdowns.first(rewards[::-1], 0.05))
    # The first means are of fewer rewards: .6, .6, .53.
    self.assertEqual(drawdowns.first(rewards[18:], 0.05), 3)
    self.assertIsNone(drawdowns.first(rewards[:1], 0.05))
    # A step without a reward hides none.
    self.assertEqual(
      drawdowns.first(np.where(np.arange(40) == 5, np.nan, rewards), 0.05), 22
    )

  def test_noise_alone_is_none(self):
    rng = np.random.default_rng(0)
    noise = rng.normal(0.5, 0.05, (2000, 100))
    self.assertLess(
      np.mean([drawdowns.first(run, 0.01) is not None for run in noise]), 0.01
    )
    # But a fall of four deviations of a step is one in spite of it.
    fallen = noise[:200] - 0.2 * (np.arange(100) >= 60)
    steps = [drawdowns.first(run, 0.01) or 0 for run in fallen]
    self.assertGreater(np.mean(np.abs(np.array(steps) - 63) <= 2), 0.9)


class RowsTest(absltest.TestCase):
  def _plan(self, **changes):
    plan = simulated_drawdowns.plan(
      lambda noise: np.full(len(noise['kl']), -np.inf),
      lambda variance, noise: 2 * variance,
      num_seeds=2,
    )
    for name, value in changes.items():
      plan.steps[name.replace('__', '/')] = value
    return plan

  def test_rows_end_before_the_drawdown_or_where_it_is_not_known(self):
    plan = self._plan()
    falls = (plan.steps['seed'] == 1) & (plan.steps['step'] > 50)
    plan.steps.loc[falls, 'reward/mean'] -= 0.3
    plan.runs['state'] = np.where(
      (plan.runs['variant'] == 'x2') & (plan.runs['seed'] == 0),
      'failed',
      'finished',
    )
    plan.runs['end'] = 101
    rows = drawdowns.rows(plan)
    ends = rows.groupby(['rung', 'seed']).agg(
      first=('step', 'min'),
      last=('step', 'max'),
      drawdown=('drawdown', 'first'),
      follows=('follows', 'sum'),
    )
    self.assertEqual(
      ends.fillna(-1).values.tolist(),
      [[1, 90, -1, 0], [1, 50, 51, 10], [1, 100, 101, 10], [1, 50, 51, 10]],
    )

  def test_what_is_known_by_hand(self):
    # ESS of the rows is 1 / (1 + .2^2), of tokens .8: 1 / ESS - 1 is .25.
    width = np.log(1.2 / 0.9) / 2
    plan = self._plan(
      ratio__mean=0.5,
      ratio__std=0.1,
      token_weight__ess=0.8,
      kl_old__k3=0.02,
      clip__eps_low=0.1,
      clip__eps_high=0.2,
    )
    row = drawdowns.rows(plan).iloc[24]
    steps = plan.steps.iloc[:25]
    self.assertEqual(row['step'], 25)
    expected = {
      'variance': np.log(steps['log_ratio/row_variance'].iloc[-1]),
      'kl': np.log(0.02),
      'token_ess': np.log(0.25),
      'row_ess': np.log(0.04),
      'number': np.log(25),
      'gap': np.log(steps['agm/log_gap'].iloc[-1]),
      'history': np.log(np.mean(steps['agm/log_gap'].iloc[-10:]) / width),
    }
    for name, value in expected.items():
      self.assertAlmostEqual(row[name], value, msg=name)

  def test_rule_of_the_detector(self):
    # A and H within a percent: the rate is .995 from the first step on, and the
    # 20th record is the first that is enough of them. In widths of .05 they are
    # 1.1 and 1 / 1.1, apart by a tenth.
    rows = drawdowns.rows(
      self._plan(
        agm__arithmetic=1.005,
        agm__harmonic=1 / 1.005,
        clip__eps_low=0.05,
        clip__eps_high=0.05,
      )
    )
    run = rows[(rows['rung'] == 'sort/x1') & (rows['seed'] == 0)]
    np.testing.assert_array_equal(run['detector'], run['step'] >= 20)
    self.assertEqual(rows['detector_clip'].max(), 0)

  def test_no_row_is_of_a_step_that_measured_less(self):
    plan = self._plan()
    plan.steps.loc[plan.steps['step'] == 30, 'kl_old/k3'] = np.nan
    self.assertNotIn(30, set(drawdowns.rows(plan)['step']))
    plan.steps.loc[plan.steps['step'].between(1, 7), 'reward/mean'] = np.nan
    rows = drawdowns.rows(plan)
    self.assertEqual(rows['step'].min(), 8)
    self.assertTrue(np.isfinite(rows['fall']).all())

  def test_plan_without_records_is_refused(self):
    plan = self._plan()
    with self.assertRaisesRegex(
      config_lib.ConfigError, 'agm/log_gap missing'
    ) as caught:
      drawdowns.rows(
        plan._replace(steps=plan.steps.drop(columns='agm/log_gap'))
      )
    self.assertNotIn('\n', str(caught.exception))
    with self.assertRaisesRegex(config_lib.ConfigError, 'reward/mean'):
      drawdowns.rows(plan._replace(steps=pandas.DataFrame(columns=['step'])))


if __name__ == '__main__':
  absltest.main()

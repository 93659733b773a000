"""What a number adds to the prediction of drawdowns: planted truths."""

import os
import pathlib
import subprocess
import sys
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import pandas

from hmpo_jax import config as config_lib
from hmpo_jax.analysis import drawdowns
from hmpo_jax.analysis import prediction
from tests import simulated_drawdowns

_ROOT = pathlib.Path(__file__).parents[2]
# The program on runs that no folder holds.
_PROGRAM = f"""
import runpy, sys
from hmpo_jax.analysis import records
from tests import simulated_drawdowns
records.read = lambda workdir: simulated_drawdowns.plan(
    lambda noise: 2 * noise['planted'] + float(workdir.rpartition('=')[2]),
    lambda variance, noise: variance, num_seeds=4)
sys.argv = ['drawdowns.py', *sys.argv[1:]]
runpy.run_path({str(_ROOT / 'experiments' / 'drawdowns.py')!r},
               run_name='__main__')
"""


def _rows(cause, strength, gap, **options):
  """Rows of runs that fall by a cause with this strength."""
  plan = simulated_drawdowns.plan(
    lambda noise: strength * noise[cause] - 5.5, gap, **options
  )
  return drawdowns.rows(plan)


def _added(rows, extra='gap'):
  """What a gap adds to what was asked about."""
  base = prediction.regression(rows, drawdowns.ASKED)
  both = prediction.regression(rows, drawdowns.ASKED, extra)
  return prediction.increment(base, both, num_resamples=30)


def _with_news(variance, noise):
  """A gap that is the variance but for a tenth of what is planted."""
  return variance * np.exp(0.1 * noise['planted'])


class IncrementTest(parameterized.TestCase):
  def test_planted_predictor_adds_to_the_others(self):
    found = _added(_rows('planted', 2.5, _with_news, seed=9))
    self.assertGreater(found.low, 0)
    self.assertBetween(found.estimate, 0.1, 0.4)
    self.assertBetween(found.estimate, found.low, found.high)

  @parameterized.named_parameters(
    ('line', lambda variance, noise: 1.02 * variance, True),
    ('power', lambda variance, noise: variance**1.7, True),
    ('curve', lambda variance, noise: variance * (1 + variance), False),
    ('noise', _with_news, False),
  )
  def test_function_of_the_variance_and_noise_add_nothing(self, gap, is_line):
    # The variance is the cause of it all, and was asked about.
    found = _added(_rows('variance', 1.5, gap, seed=3))
    self.assertBetween(0, found.low, found.high)
    if is_line:  # in the logs
      self.assertEqual(found, (0, 0, 0))

  def test_seed_is_scored_without_its_own_drawdowns(self):
    rows = _rows('planted', 2.5, _with_news, num_seeds=5)
    model = prediction.regression(rows, drawdowns.ASKED, 'gap')
    other = model._replace(
      follows=np.where(model.seeds == 2, ~model.follows, model.follows)
    )
    scores, changed = (prediction.out_of_seed(m) for m in (model, other))
    is_out = model.seeds == 2
    np.testing.assert_allclose(changed[is_out], scores[is_out], atol=1e-6)
    self.assertGreater(np.max(np.abs((changed - scores)[~is_out])), 0.01)

  def test_regression_is_at_the_maximum_of_its_likelihood(self):
    rows = _rows('variance', 1.5, _with_news, num_seeds=5)
    model = prediction.regression(rows, drawdowns.ASKED)
    # Left out are seeds that weigh nothing too: all but those of 0 to 2.
    weights = np.array([1.0, 2.0, 1.0, 0.0, 0.0])
    scores = prediction.out_of_seed(model, weights)
    np.testing.assert_array_equal(scores[model.seeds > 2], 0)
    twice = np.flatnonzero(model.seeds == 1)
    more = np.concatenate([np.flatnonzero(model.seeds < 3), twice])
    alone = prediction.Regression(
      model.inputs[more],
      model.ridge,
      model.follows[more],
      model.rungs[more],
      model.seeds[more],
    )
    np.testing.assert_allclose(
      prediction.out_of_seed(alone)[: -len(twice)],
      scores[model.seeds < 3],
      atol=1e-4,
    )


class AucTest(absltest.TestCase):
  def _auc(self, scores, follows, rungs, seeds, weights=None):
    model = prediction.Regression(
      np.zeros((len(scores), 0)),
      np.zeros(0),
      np.array(follows, bool),
      np.array(rungs),
      np.array(seeds),
    )
    return prediction.auc(model, np.array(scores), weights)

  def test_pairs_of_one_rung_by_hand(self):
    # Rung 0: 3 above 1 and 2, a tie with 3: 2.5 of 3. Rung 1: 0 below 9.
    scores, follows = [3.0, 1.0, 2.0, 3.0, 0.0, 9.0], [1, 0, 0, 0, 1, 0]
    rungs, seeds = [0, 0, 0, 0, 1, 1], [0, 0, 1, 1, 0, 1]
    self.assertEqual(self._auc(scores, follows, rungs, seeds), 2.5 / 4)
    # Seed 1 twice: 1 + 2 * 1.5 of 5, and 0 of 2.
    self.assertEqual(
      self._auc(scores, follows, rungs, seeds, np.array([1.0, 2.0])), 4 / 7
    )

  def test_without_a_pair_there_is_none(self):
    self.assertTrue(np.isnan(self._auc([1.0, 2.0], [1, 0], [0, 1], [0, 0])))


class TableTest(absltest.TestCase):
  def test_one_line_for_each_question(self):
    rows = _rows('planted', 2.5, _with_news, num_seeds=4)
    found = prediction.table(rows, num_resamples=3)
    self.assertEqual(
      found['predictor'].tolist(),
      ['', 'gap', 'history'] * 2 + ['detector', 'detector_clip'],
    )
    both = found[found['predictor'] == 'gap'].iloc[0]
    alone = found.iloc[0]
    self.assertAlmostEqual(both['increment'], both['auc'] - alone['auc'])
    # A and H of 1.05 and .95 are no convergence by either rule.
    rules = found.tail(2)
    self.assertEqual(rules['auc'].tolist(), [0.5, 0.5])
    self.assertEqual(rules['warned'].tolist(), [0, 0])
    self.assertEqual(rules['false_alarms'].tolist(), [0, 0])

  def test_alarms_by_hand(self):
    # A warned drawdown (lead 7), one without an alarm, and a run whose only
    # alarm is false.
    rows = pandas.DataFrame(
      {
        'rung': 'r',
        'seed': [0, 0, 0, 1, 1, 2, 2],
        'step': [5, 13, 14, 5, 6, 5, 6],
        'drawdown': [20.0, 20.0, 20.0, 7.0, 7.0, np.nan, np.nan],
        'follows': [False, True, True, True, True, False, False],
      }
    )
    alarms = np.array([0, 1, 1, 0, 0, 1, 0], bool)
    self.assertEqual(
      prediction._alarms(rows, alarms),
      {'warned': 1 / 2, 'lead': 7, 'false_alarms': 1 / 3},
    )

  def test_without_a_quiet_step_there_is_no_alarm(self):
    rows = _rows('planted', 2.5, _with_news, num_seeds=4)
    found = prediction.table(rows.assign(follows=True), num_resamples=2)
    self.assertEqual(found['false_alarms'].tolist(), [0] * 8)
    self.assertTrue(found['auc'].isna().all())

  def test_few_drawdowns_are_refused(self):
    rows = _rows('planted', 0.0, _with_news, num_seeds=4)
    rows = rows.assign(follows=rows['follows'] & (rows['seed'] < 2))
    with self.assertRaisesRegex(config_lib.ConfigError, 'seeds have') as caught:
      prediction.table(rows)
    self.assertNotIn('\n', str(caught.exception))


class ProgramTest(absltest.TestCase):
  def _main(self, odds, out):
    return subprocess.run(
      [
        sys.executable,
        '-c',
        _PROGRAM,
        f'--workdir=plan={odds}',
        f'--out={out}',
        '--resamples=20',
      ],
      env=os.environ | {'PYTHONPATH': str(_ROOT)},
      capture_output=True,
      text=True,
      check=False,
    )

  def test_prints_and_writes_the_table(self):
    with tempfile.TemporaryDirectory() as out:
      result = self._main(-4, out)
      self.assertEqual(result.returncode, 0, result.stderr)
      table = pandas.read_csv(pathlib.Path(out) / 'drawdowns.csv')
    self.assertRegex(result.stdout, r'\d+ drawdowns in 8 runs of 4 seeds')
    self.assertLen(table, 8)
    self.assertIn('history', result.stdout)

  def test_plan_without_drawdowns_is_refused_in_one_line(self):
    result = self._main(-99, '.')
    self.assertEqual(result.returncode, 2)
    self.assertEqual(result.stderr.count('\n'), 1)
    self.assertIn('0 seeds have a drawdown', result.stderr)


if __name__ == '__main__':
  absltest.main()

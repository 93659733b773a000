"""What a run came to, from records with planted gaps."""

import math

from absl.testing import absltest

from hmpo_jax import config as config_lib
from hmpo_jax.run import summary
from hmpo_jax.training import update

_EVALUATION = {
  'eval/reward': 0.5,
  'eval/reward_stderr': 0.01,
  'eval/exact': 0.1,
  'eval/nan_rewards': 0,
}
_EXTRA = {
  'early_stop': '',
  'settings': {},
  'first_eval': _EVALUATION,
  'eval': _EVALUATION,
}


def _records(num, **changes):
  """Records that differ by step in what is given by name, with / as __."""
  same = dict.fromkeys(
    (
      'reward/mean',
      'ratio/mean',
      'clip/low_frac',
      'clip/high_frac',
      'log_ratio/last_update_sigma',
      'qk/max_logit',
      'qk/exploded',
      'qk/over_monitor_tau_frac',
      'qk/clipped_frac',
      'qk/factor_min',
      'qk/heads_ever_clipped_frac',
      'total/episodes',
      'total/tokens',
    ),
    0.0,
  )
  same |= {f'skipped/{cause}': 0 for cause in update.SKIP_CAUSES}
  return [
    {'step': i + 1}
    | same
    | {key.replace('__', '/'): values[i] for key, values in changes.items()}
    for i in range(num)
  ]


def _make(records, **extra):
  found = summary.make(records, _EXTRA | extra, {}, config_lib.default_config())
  return found, dict(summary.rows(found, 'run'))


class SummaryTest(absltest.TestCase):
  def test_mean_is_over_what_was_measured(self):
    gaps = [1.0, math.nan, 3.0]
    found, table = _make(_records(3, ratio__mean=gaps, qk__max_logit=gaps))
    self.assertEqual((found['ratio_mean'], found['max_logit']), (2.0, 3.0))
    self.assertEqual(table['mean ratio'], '2.0000')

  def test_what_no_step_measured_is_told(self):
    found, table = _make(_records(2, ratio__mean=[math.nan] * 2))
    self.assertIsNone(found['ratio_mean'])
    self.assertEqual(table['mean ratio'], 'not measured')

  def test_cosine_is_over_the_comparisons_that_have_one(self):
    label = 'cosine of gradients p = 0, -1 (unclipped)'
    cosines = {
      'mechanism__step': [1, 1, 3, 4],
      'mechanism__cosine': [math.nan, math.nan, 0.998, math.nan],
      'mechanism__cosine_unclipped': [0.9, math.nan, 0.7, 0.8],
    }
    found, table = _make(_records(4, **cosines))
    self.assertEqual((found['cosine'], found['cosine_defined']), (0.998, 1))
    self.assertAlmostEqual(found['cosine_unclipped'], 0.8)
    self.assertEqual(
      table[label], '0.998 (0.800), defined in 1 (3) of 3 comparisons'
    )
    cosines['mechanism__cosine'] = [0.9] * 4
    _, table = _make(_records(4, **cosines))
    self.assertEqual(table[label], '0.900 (0.800)')

  def test_rewards_without_a_number_are_no_reward_of_0(self):
    prompts = config_lib.default_config().eval.num_prompts
    none = _EVALUATION | {'eval/nan_rewards': prompts}
    found, table = _make(_records(1), first_eval=none, eval=none)
    self.assertIsNone(found['heldout_reward_last'])
    self.assertEqual(table['held-out reward'], 'not measured')
    some = _EVALUATION | {'eval/nan_rewards': 3}
    _, table = _make(_records(1), eval=some)
    self.assertEqual(
      table['held-out rewards that are NaN'], '3, which count as 0'
    )

  def test_no_share_of_a_gap_that_is_not_there(self):
    best = _EVALUATION | {'eval/reward': 1.0}
    found, table = _make(_records(1), first_eval=best)
    self.assertIsNone(found['gap_closed'])
    self.assertEqual(table['share of the gap to 1 closed'], 'not measured')


if __name__ == '__main__':
  absltest.main()

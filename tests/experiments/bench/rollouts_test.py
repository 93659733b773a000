"""The suite of sampling: what it times; no time is asserted."""

from unittest import mock

from absl.testing import absltest
import jax.numpy as jnp

from experiments.bench import limits
from experiments.bench import rollouts
from experiments.bench import timing
from hmpo_jax.training import learner
from tests import small
from tests.experiments.bench import ours_test as bench_ours_test

_TINY = bench_ours_test.TINY
_LIMITS = timing.Limits(2.0, 4.0, 'matmul')


def _options(**options):
  return timing.Options([_TINY], 2, small.config(), limits=_LIMITS, **options)


class RolloutsTest(absltest.TestCase):
  def test_rows_of_bucket_sizes(self):
    with mock.patch.object(rollouts, '_BUCKETS', (1, 2, 5)):
      with mock.patch.object(rollouts, '_MOST_BUCKETS', 3):
        with mock.patch.object(limits, 'is_cpu', lambda: False):
          rows = rollouts.measure(_options())
    # 5 tokens would be 5 buckets of 1; one of 5 is the whole.
    self.assertEqual(
      [row.variant for row in rows], ['one bucket', 'buckets of 2']
    )
    for row in rows:
      self.assertEqual(row.shape, 'tiny')
      self.assertAlmostEqual(
        row.tokens_per_s, 30 / row.ms * 1e3, delta=1e-2 * row.tokens_per_s
      )
      read = limits.rollout_bytes(_TINY)
      self.assertAlmostEqual(
        row.of_limit, read / 2e6 / row.ms, delta=1e-4 + 1e-3 * row.of_limit
      )

  def test_bandwidth_says_nothing_on_a_cpu(self):
    rows = rollouts.measure(_options(variants='none'))
    self.assertEqual([row.variant for row in rows], ['one bucket'])
    self.assertIsNone(rows[0].of_limit)

  def test_bucket_is_that_of_the_variant(self):
    with mock.patch.object(learner, 'collect') as collect:
      collect.side_effect = lambda static, *_: jnp.int32(static.rollout.bucket)
      cases = []
      keep = lambda shape, found, *_, **__: cases.extend(found) or []
      with mock.patch.multiple(
        timing, timed=keep, wall_clock=lambda call: call
      ):
        rollouts.measure(
          _options()._replace(shapes=[_TINY._replace(response_len=64)])
        )
    self.assertEqual(
      {case.variant: int(case.seconds()) for case in cases},
      {'one bucket': 64, 'buckets of 16': 16, 'buckets of 32': 32},
    )


if __name__ == '__main__':
  absltest.main()

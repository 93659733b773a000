"""The suite of log-probabilities: what it times; no time is asserted."""

from unittest import mock

from absl.testing import absltest
import numpy as np

from experiments.bench import logprobs
from experiments.bench import timing
from tests import small

_SHAPE = 3, 4, 11


def _groups(**options):
  """Cases by group; `case.seconds()` is what the timed call returns."""
  groups = {}
  keep = lambda shape, cases, *_, **__: (
    groups.update({shape: list(cases)}) or []
  )
  options = timing.Options([_SHAPE], 2, small.config(), **options)
  with mock.patch.multiple(timing, timed=keep, wall_clock=lambda call: call):
    with mock.patch.object(logprobs, '_CHUNK_SIZES', (4,)):
      logprobs.measure(options)
  return groups


class LogprobsTest(absltest.TestCase):
  def test_all_variants_are_equal(self):
    groups = _groups()
    self.assertEqual(list(groups), ['3x4x11 float32', '3x4x11 bfloat16'])
    for cases in groups.values():
      self.assertEqual(
        {case.variant for case in cases},
        {
          'naive',
          'checkpoint of naive',
          'chunks',
          'chunks, tied',
          'chunks of 4',
        },
      )
      self.assertEqual((cases[0].variant, cases[0].mode), ('naive', 'logprobs'))
      baselines = {}
      for case in cases:
        value, (of_hidden, of_head) = case.seconds()
        if 'tied' in case.variant:
          of_head = of_head.T
        found = [np.float32(x) for x in (value, of_hidden, of_head)]
        expected = baselines.setdefault(case.mode, found)
        # Derivatives in bfloat16 are rounded at other places.
        for x, y in zip(found, expected):
          np.testing.assert_allclose(x, y, rtol=0, atol=2e-2 * np.abs(y).max())
      self.assertFalse(
        np.array_equal(
          baselines['logprobs'][1], baselines['logprobs and entropies'][1]
        )
      )

  def test_products_are_counted(self):
    cases = _groups(variants='chunks')['3x4x11 float32']
    self.assertEqual(
      [(case.variant, case.flops) for case in cases],
      [('naive', 6 * 132), ('chunks', 8 * 132), ('chunks', 8 * 132)],
    )

  def test_rows(self):
    options = timing.Options([_SHAPE], 2, small.config(), variants='chunks')
    rows = logprobs.measure(options)
    self.assertLen(rows, 6)
    for row in rows:
      self.assertGreater(row.ms, 0)
      self.assertIsNotNone(row.temporary_mb)
    self.assertEqual(rows[0].ratio, 1)


if __name__ == '__main__':
  absltest.main()

"""What figures draw of bands and of gaps."""

from absl.testing import absltest
import numpy as np
import pandas

from hmpo_jax.analysis import curves
from tests import plan_case

_KEY = 'mechanism/cosine_unclipped'


class CurvesTest(plan_case.PlanTestCase):
  def _draw(self, values, **options):
    """Axes with a curve over steps 0, 10, ... of each row of values."""
    plan, _ = self.plan({'hmpo': 0.3}, seeds=len(values))
    frame = pandas.DataFrame(
      [
        {
          'task': 'sort',
          'variant': 'hmpo',
          'seed': seed,
          'step': 10 * i,
          _KEY: value,
        }
        for seed, row in enumerate(values)
        for i, value in enumerate(row)
      ]
    )
    picture = curves.of_variants(
      plan, frame, 'sort', curves.Curve(_KEY, 'cosine', **options)
    )
    (axes,) = picture.axes
    return axes

  def test_no_band_leaves_what_there_can_be(self):
    values = np.array(
      [[0.99, 0.2], [0.98, 0.9], [1.0, -1.0], [0.4, 0.7], [0.97, 0.99]]
    )
    for spread in ('interval', 'deviation'):
      (band,) = self._draw(values, spread=spread).collections
      heights = band.get_paths()[0].vertices[:, 1]
      self.assertEqual(heights.max(), 1, spread)
      self.assertGreaterEqual(heights.min(), -1, spread)

  def test_a_value_between_gaps_is_drawn(self):
    nan = np.nan
    axes = self._draw([[nan, 0.5, nan, 0.7], [0.9, nan, 0.8, nan]])
    first, second, mean = [line.get_xydata() for line in axes.lines]
    np.testing.assert_allclose(first, [[10, 0.5], [30, 0.7]])
    np.testing.assert_allclose(second, [[0, 0.9], [20, 0.8]])
    np.testing.assert_allclose(
      mean, [[0, 0.9], [10, 0.5], [20, 0.8], [30, 0.7]]
    )


if __name__ == '__main__':
  absltest.main()

"""The phase diagram from rows of its table."""

import importlib.util
import io
import itertools
import unittest

from absl.testing import absltest
import numpy as np

from hmpo_jax.analysis import phase

_ORDERS = (-1.0, 0.0, 1.0)
_SIGMAS = (0.1, 0.3)


def _rows(as_text):
  """Two directions, two lengths; p = 0 is best, at sigma 0.3 p = 1."""
  rows = []
  for direction, length, sigma, p in itertools.product(
    ('random', 'learned'), (2, 4), _SIGMAS, _ORDERS
  ):
    best = 1.0 if sigma == 0.3 else 0.0
    rows.append(
      {
        'reward': 'share',
        'direction': direction,
        'length': length,
        'sigma_nats': sigma,
        'p': p,
        'mse_over_best': 1 + abs(p - best),
        'best': int(p == best),
        'tied': int(p >= 0),
        'best_limit': int(p == 1),
      }
    )
  if as_text:
    rows = [{name: str(value) for name, value in row.items()} for row in rows]
  return rows


@unittest.skipUnless(importlib.util.find_spec('matplotlib'), 'needs matplotlib')
class DrawTest(absltest.TestCase):
  def test_shows_each_cell_and_its_marks(self):
    for as_text in (False, True):
      picture = phase.draw(_rows(as_text)[::-1])
      panels = [axes for axes in picture.get_axes() if axes.images]
      self.assertLen(panels, 4)
      for axes in panels:
        np.testing.assert_allclose(
          axes.images[0].get_array(), [[2, 3], [1, 2], [2, 1]]
        )
        marks = {
          points.get_label(): np.asarray(points.get_offsets()).tolist()
          for points in axes.collections
        }
        self.assertCountEqual(marks.pop('best p'), [[0, 1], [1, 2]])
        self.assertCountEqual(
          marks.pop('best with infinitely many prompts'), [[0, 2], [1, 2]]
        )
        (tied,) = marks.values()
        self.assertCountEqual(tied, [[0, 1], [0, 2], [1, 1], [1, 2]])
      labels = {axes.get_title(): axes for axes in panels}
      self.assertCountEqual(labels, ['2 tokens', '4 tokens'])
      below = panels[-1]
      self.assertEqual(below.get_xlabel(), 'sigma, nats')
      self.assertEqual(
        [text.get_text() for text in below.get_xticklabels()], ['0.1', '0.3']
      )
      picture.savefig(io.BytesIO(), format='png')

  def test_lengths_are_in_order(self):
    titles = [
      axes.get_title()
      for axes in phase.draw(_rows(False)[::-1]).get_axes()
      if axes.images
    ]
    self.assertEqual(titles, ['2 tokens', '4 tokens'] * 2)

  def test_refuses_what_it_cannot_show(self):
    with self.assertRaisesRegex(ValueError, "reward='exact': no such row"):
      phase.draw(_rows(False), 'exact')
    with self.assertRaisesRegex(ValueError, 'a row for each pair'):
      phase.draw(_rows(False)[1:])


if __name__ == '__main__':
  absltest.main()

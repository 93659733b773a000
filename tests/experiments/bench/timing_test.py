"""What becomes of the times of cases that take turns."""

import time
from unittest import mock

from absl.testing import absltest
import jax.numpy as jnp

from experiments.bench import timing


def _case(variant, seconds, **options):
  """A case that tells these times one after the other."""
  times = iter(seconds)
  return timing.Case(variant, 'mode', lambda repeats: next(times), **options)


class TimingTest(absltest.TestCase):
  def test_medians_spreads_and_ratios_by_hand(self):
    # The first time is of the call before all rounds.
    first = _case('first', [9.0, 1.0, 2.0, 4.0], flops=4e9)
    second = _case('second', [9.0, 3.0, 2.0, 8.0])
    rows = timing.timed('2x3', [first, second], 3, fill_caches=False)
    self.assertEqual([row.variant for row in rows], ['first', 'second'])
    # Ratios 3, 1 and 2; times in milliseconds.
    self.assertEqual(rows[0][3:8], (3, 2000, 1500, 1, 0))
    self.assertEqual(rows[1][3:8], (3, 3000, 3000, 2, 1))
    self.assertEqual([row.gflops_per_s for row in rows], [2, None])
    self.assertEqual(set(rows[1][9:]), {None})

  def test_rates_by_hand(self):
    case = _case(
      '', [1.0, 2.0, 2.0], tokens=100, limit_s=0.5, peak_mb=lambda: 7.0
    )
    (row,) = timing.timed('', [case], 2, fill_caches=False)
    self.assertEqual(
      (row.tokens_per_s, row.of_limit, row.peak_mb), (50, 0.25, 7)
    )
    self.assertEqual((row.to_trl, row.to_faster), (None, None))

  def test_ratios_to_other_projects_by_hand(self):
    ours = _case('ours', [9.0, 1.0, 4.0, 3.0])
    trl = _case('trl', [9.0, 2.0, 4.0, 3.0], peer='trl')
    tunix = _case('tunix', [9.0, 4.0, 4.0, 2.0], peer='tunix')
    rows = timing.timed('', [ours, trl, tunix], 3, fill_caches=False)
    # Medians 3 and 4; ratios within rounds 1/2, 1, 1 and 1/4, 1, 3/2.
    self.assertEqual((rows[0].to_trl, rows[0].to_tunix), (1, 1))
    self.assertEqual(
      (rows[0].to_trl_spread, rows[0].to_tunix_spread), (0.25, 0.625)
    )
    self.assertEqual((rows[0].to_faster, rows[0].to_faster_spread), (1, 0.25))
    self.assertEqual((rows[2].to_trl, rows[2].to_tunix), (1, 1))
    self.assertEqual(rows[2].to_faster_spread, round(2 / 3, 5))

  def test_parts_stand_behind_their_case(self):
    last = iter([9.0, 1.0, 4.0, 3.0])
    told = {}
    seconds = lambda repeats: told.update(half=next(last)) or told['half'] * 2
    case = timing.Case('peer', 'step', seconds, parts=lambda: dict(told))
    other = _case('other', [9.0] * 4, peer='trl')
    rows = timing.timed('', [case, other], 3, fill_caches=False)
    self.assertEqual(
      [(row.variant, row.mode, row.ms) for row in rows],
      [('peer', 'step', 6000), ('peer', 'half', 3000), ('other', 'mode', 9000)],
    )
    self.assertEqual(rows[1].ratio, 0.5)  # of the whole step of its round
    # A part is no step, which is all that others are held to.
    self.assertIsNone(rows[1].to_trl)
    self.assertIsNotNone(rows[0].to_trl)

  def test_warmups_are_not_timed(self):
    case = _case('', [9.0, 9.0, 1.0, 1.0])
    (row,) = timing.timed('', [case], 2, warmups=2, fill_caches=False)
    self.assertEqual(row.ms, 1000)

  def test_options_examine_what_was_timed(self):
    seen = []
    options = timing.Options(
      [], 2, None, examine=lambda *args: seen.append(args)
    )
    cases = [_case('', [1.0] * 9), _case('other', [1.0] * 9)]
    rows = options.timed('2x3', cases)
    self.assertEqual([row.rounds for row in rows], [2, 2])
    self.assertEqual(seen, [('2x3', case) for case in cases])
    cases = [_case('', [1.0] * 9)]
    rows = options._replace(examine=None).timed('', cases, 3)
    self.assertEqual(rows[0].rounds, 3)
    self.assertLen(seen, 2)

  def test_turn_starts_with_one_call_that_is_not_timed(self):
    asked = []
    case = timing.Case('', '', lambda repeats: asked.append(repeats) or 1.0)
    timing.timed('', [case], 2, repeats=5)
    self.assertEqual(asked, [1, 1, 5, 1, 5])
    asked.clear()
    timing.timed('', [case], 2, repeats=5, fill_caches=False)
    self.assertEqual(asked, [1, 5, 5])

  def test_cases_take_turns_in_another_order_each_round(self):
    order = []
    cases = [
      timing.Case(
        str(i), '', lambda repeats, i=i: order.append(i) or float(repeats)
      )
      for i in range(3)
    ]
    timing.timed('', cases, 20, fill_caches=False)
    turns = {tuple(order[i : i + 3]) for i in range(3, len(order), 3)}
    self.assertGreater(len(turns), 3)
    for turn in turns:
      self.assertEqual(sorted(turn), [0, 1, 2])

  def test_wall_clock_is_of_one_call(self):
    calls = []
    seconds = timing.wall_clock(lambda: calls.append(1))
    with mock.patch.object(time, 'perf_counter', side_effect=[10.0, 16.0]):
      self.assertEqual(seconds(3), 2)
    self.assertLen(calls, 3)

  def test_compiled_program_donates_and_knows_its_size(self):
    kept, spent = jnp.ones((250, 1000)), jnp.ones((250, 1000))
    program = timing.compiled(
      lambda x, y: (x + y, x @ x.T), kept, spent, donate=(1,)
    )
    program.call(kept, spent)
    self.assertTrue(spent.is_deleted())
    self.assertFalse(kept.is_deleted())
    self.assertGreater(program.compile_s, 0)
    case = timing.Case('', '', lambda repeats: 1.0, program)
    (row,) = timing.timed('', [case], 2)
    self.assertEqual(row.compile_s, round(program.compile_s, 3))
    self.assertAlmostEqual(row.output_mb, 1.25, places=2)  # float32

  def test_variant_is_wanted_as_a_whole(self):
    options = timing.Options([], 2, None, variants='muon|p = .*')
    self.assertTrue(options.wants('muon'))
    self.assertTrue(options.wants('p = -1'))
    self.assertFalse(options.wants('optax muon'))

  def test_shapes_are_sizes_or_names(self):
    suite = timing.Suite(list, list, ('2x3',), 2)
    self.assertEqual(suite.read_shape('64x1024'), (64, 1024))
    for text in '64', '0x4', '2x3x4', 'axb', '':
      with self.assertRaisesRegex(ValueError, f'^{text}: must be as 2x3$'):
        suite.read_shape(text)
    self.assertEqual(suite._replace(named=str.upper).read_shape('w'), 'W')


if __name__ == '__main__':
  absltest.main()

"""Grids: what is run, which point is chosen, where the grid grows."""

import dataclasses
import math
import pathlib

from absl.testing import absltest
from absl.testing import parameterized

from hmpo_jax import config as config_lib
from hmpo_jax.plan import design
from hmpo_jax.plan import doctor
from hmpo_jax.plan import rules
from hmpo_jax.plan import tuning

_GRID = design.Tuning((1e-4, 1e-3), (0.05, 0.1, 0.2), (100, 101))


def _plan():
  variant = design.Variant
  return design.Plan(
    question='Which?',
    seeds=(0, 1),
    tasks={'sort': {}},
    variants={
      'gspo': variant({'loss.p': 0.0}, 'own'),
      'hmpo': variant({'loss.p': -1.0}, 'own'),
      'p1': variant({'loss.p': 1.0}, 'gspo'),
      'matched': variant({}, 'gspo', clip_frac=0.15),
      'plain': variant(),
    },
    tuning=_GRID,
  )


def _results(areas, clip_frac=lambda eps: 0.0):
  """A result for each point and seed; areas by (learning rate, eps)."""
  return [
    tuning.Result(
      'sort', 'gspo', rate, eps, seed, area + 0.01 * seed, False, clip_frac(eps)
    )
    for (rate, eps), area in areas.items()
    for seed in (0, 1)
  ]


def _areas(best):
  return {tuple(point): float(point == best) for point in tuning.grid(_GRID)}


class TuningTest(parameterized.TestCase):
  def test_runs_of_a_grid_use_seeds_of_their_own(self):
    made = tuning.runs(_plan(), 'sort', 'gspo', tuning.grid(_GRID), _GRID.seeds)
    self.assertLen(made, 2 * 3 * 2)
    self.assertLen({run.folder for _, run in made}, 12)
    for point, run in made:
      self.assertIn(run.seed, _GRID.seeds)
      self.assertEqual(
        run.overrides['optim.learning_rate'], point.learning_rate
      )
      self.assertEqual(run.overrides['loss.clip_eps_low'], point.eps)
      self.assertEqual(run.overrides['loss.clip_eps_high'], point.eps)
      self.assertEqual(run.overrides['loss.p'], 0.0)

  def test_best_is_the_best_mean_over_seeds(self):
    best = tuning.Point(1e-3, 0.1)
    self.assertEqual(tuning.best(_plan(), _results(_areas(best))), best)
    one_good_seed = _results(_areas(best)) + [
      tuning.Result('sort', 'gspo', 1e-4, 0.05, 2, 1.5, False, 0.0)
    ]
    self.assertEqual(tuning.best(_plan(), one_good_seed), best)

  def test_final_seeds_decide_between_the_points_that_they_ran(self):
    plan = dataclasses.replace(
      _plan(), tuning=dataclasses.replace(_GRID, final_seeds=(7, 8))
    )
    lucky, sound = tuning.Point(1e-3, 0.1), tuning.Point(1e-4, 0.2)
    results = _results(_areas(lucky))
    self.assertEqual(tuning.best(plan, results), lucky)
    results += [
      tuning.Result('sort', 'gspo', *point, seed, area, False, 0.0)
      for point, area in ((lucky, 0.2), (sound, 0.3))
      for seed in (7, 8)
    ]
    self.assertEqual(tuning.best(plan, results), sound)
    self.assertEqual(tuning.ranked(results)[:2], [lucky, sound])
    self.assertEqual(
      tuning.settings(plan, {('sort', 'gspo'): results})['sort', 'p1'],
      tuning.overrides_of(sound),
    )

  def test_of_equal_points_the_smallest(self):
    areas = dict.fromkeys(_areas(None), 0.5)
    self.assertEqual(
      tuning.best(_plan(), _results(areas)), tuning.Point(1e-4, 0.05)
    )

  def test_a_best_point_inside_extends_nothing(self):
    tripled = design.Tuning((1e-4, 3e-4, 1e-3), _GRID.eps, _GRID.seeds)
    self.assertEmpty(
      tuning.extension(tuning.grid(tripled), tuning.Point(3e-4, 0.1))
    )

  @parameterized.parameters((1e-4, 1e-5), (1e-3, 1e-2))
  def test_the_grid_grows_where_its_best_point_lies(self, rate, beyond):
    added = tuning.extension(tuning.grid(_GRID), tuning.Point(rate, 0.1))
    self.assertEqual(added, [tuning.Point(beyond, eps) for eps in _GRID.eps])

  def test_a_corner_extends_both_sides(self):
    added = tuning.extension(tuning.grid(_GRID), tuning.Point(1e-3, 0.05))
    self.assertLen(set(added), 3 + 2 + 1)
    self.assertIn(tuning.Point(1e-2, 0.025), added)

  def test_a_range_never_reaches_1(self):
    wide = [tuning.Point(1e-3, eps) for eps in (0.3, 0.6)]
    self.assertEmpty(tuning.extension(wide, wide[1]))

  def test_eps_that_clips_a_share(self):
    shares = {0.05: 0.4, 0.1: 0.2, 0.2: 0.1}
    results = _results(_areas(None), shares.get)
    find = lambda share: tuning.eps_that_clips(results, 1e-3, share)
    self.assertEqual(find(0.2), 0.1)
    self.assertEqual(find(0.15), 0.14)  # sqrt(.1 .2), two digits
    self.assertEqual(find(0.9), 0.05)
    self.assertEqual(find(0.01), 0.2)

  def test_a_run_without_a_trained_row_clips_no_share(self):
    unknown = [
      tuning.Result('sort', 'gspo', 1e-3, eps, 9, 0.0, True, math.nan)
      for eps in _GRID.eps
    ]
    results = _results(
      _areas(tuning.Point(1e-3, 0.1)), lambda eps: 0.3 - 0.1 * eps
    )
    self.assertEqual(
      tuning.eps_that_clips(results + unknown, 1e-3, 0.29),
      tuning.eps_that_clips(results, 1e-3, 0.29),
    )
    with self.assertRaisesRegex(config_lib.ConfigError, 'has trained a row'):
      tuning.eps_that_clips(unknown, 1e-3, 0.29)

  def test_settings_of_own_inherited_and_shared(self):
    best = tuning.Point(1e-3, 0.1)
    shares = {0.05: 0.4, 0.1: 0.2, 0.2: 0.1}
    gspo = _results(_areas(best), shares.get)
    hmpo = _results(_areas(tuning.Point(1e-4, 0.2)))
    found = tuning.settings(
      _plan(), {('sort', 'gspo'): gspo, ('sort', 'hmpo'): hmpo}
    )
    of = lambda name: tuple(found['sort', name].values())
    self.assertEqual(of('gspo'), (1e-3, 0.1, 0.1))
    self.assertEqual(of('p1'), of('gspo'))
    self.assertEqual(of('hmpo'), (1e-4, 0.2, 0.2))
    self.assertEqual(of('matched'), (1e-3, 0.14, 0.14))
    self.assertNotIn(('sort', 'plain'), found)

  def test_only_the_grids_that_are_needed(self):
    self.assertEqual(tuning.needed(_plan(), ['p1', 'plain']), ['gspo'])
    self.assertEmpty(tuning.needed(_plan(), ['plain']))

  def test_the_chosen_point_is_marked(self):
    best = tuning.Point(1e-3, 0.1)
    rows = tuning.marked(_results(_areas(best))[::-1], best)
    self.assertLen(rows, 12)
    self.assertEqual(
      {(r.learning_rate, r.eps) for r in rows if r.chosen}, {best}
    )
    self.assertEqual(rows, sorted(rows, key=lambda r: r[2:5]))

  def test_final_seeds_are_in_the_price(self):
    wide = dataclasses.replace(_GRID, final_seeds=range(110, 113))
    plan = dataclasses.replace(_plan(), tuning=wide)
    # Six points on two seeds and the two best on three more.
    self.assertLen(doctor.grid_runs(plan, ['p1']), 6 * 2 + 2 * 3)
    self.assertLen(doctor.grid_runs(_plan(), ['p1']), 6 * 2)

  def test_doses_share_their_warm_start(self):
    doses = {
      'large': {'warm_start.query_scale': 16.0},
      'narrow': {
        'model.logits_dtype': 'float16',
        'model.attention_entropy': True,
      },
      'longer': {'warm_start.num_steps': 70},
    }
    plan = dataclasses.replace(
      _plan(), tasks={'sort': {}} | doses, variants={'a': design.Variant()}
    )
    made = doctor.programs(design.runs(plan, {}, pathlib.PurePath('w')))
    # One of each of two seeds, and those of the longer one.
    self.assertEqual(sum(len(program.warm_starts) for program in made), 2 * 2)

  @parameterized.parameters(
    ({'seeds': ()}, 'must have a seed or more'),
    ({'max_extensions': -1}, 'max_extensions of at least 0'),
    ({'seeds': (100, 100)}, r'tuning.seeds = \[100, 100\]: must be different'),
    (
      {'final_seeds': (110, 110)},
      r'tuning.final_seeds = \[110, 110\]: must be different',
    ),
    ({'final_seeds': (110.0,)}, 'must be different integers'),
  )
  def test_what_is_no_tuning_is_refused(self, changes, reason):
    changed = dataclasses.replace(_GRID, **changes)
    with self.assertRaisesRegex(config_lib.ConfigError, reason):
      rules.check(dataclasses.replace(_plan(), tuning=changed))


if __name__ == '__main__':
  absltest.main()

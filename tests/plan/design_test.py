"""Plans: what they must hold, and the runs that they ask for."""

import dataclasses
import json
import pathlib
import runpy

from absl.testing import absltest
from absl.testing import parameterized

from hmpo_jax import config as config_lib
from hmpo_jax.plan import description
from hmpo_jax.plan import design
from hmpo_jax.plan import doctor
from hmpo_jax.plan import probe
from hmpo_jax.plan import rules

_FOLDER = pathlib.PurePath('runs/plan')
_CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'

_START = probe.Found(
  run=0,
  platform='cpu',
  device='cpu',
  start_reward=0.5,
  start_exact=0.1,
  template_reward=0.4,
  template_exact=0.0,
  constant_groups=0.0,
  compile_s=1.0,
  step_s=1.0,
  eval_s=1.0,
  warm_start_s=1.0,
  state_bytes=1,
  temporary_bytes=1,
)
# Tasks in a ladder, whose rates ascend.
_LADDER = {
  'tasks': design.rungs('l', 1e-3, (1, 2)),
  'ladders': {'l': ('l-x1', 'l-x2')},
}


def _plan(**changes):
  plan = design.Plan(
    question='Which?',
    seeds=(3, 4, 7),
    tasks={'short': {}, 'long': {'task.num_digits': 9}},
    base={'num_steps': 5, 'optim.tau': 8.0},
    variants={
      'gspo': design.Variant({'loss.p': 0.0}, 'own', exploratory=False),
      'hmpo': design.Variant({'loss.p': -1.0}, 'gspo', exploratory=False),
      'moving': design.Variant({'exponent.kind': 'adaptive'}),
      'yoked': design.Variant(replays='moving'),
    },
    contrasts=[design.Contrast('hmpo', 'gspo', 'area', 'short')],
    tuning=design.Tuning((1e-3,), (0.1, 0.2), (100,)),
  )
  return dataclasses.replace(plan, **changes)


def _runs(plan, settings=()):
  return design.runs(plan, dict(settings), _FOLDER)


class RunsTest(parameterized.TestCase):
  def test_a_run_for_each_task_variant_and_seed(self):
    runs = _runs(_plan())
    self.assertLen(runs, 2 * 4 * 3)
    self.assertLen({run.folder for run in runs}, 24)
    self.assertLen({(run.task, run.variant, run.seed) for run in runs}, 24)

  def test_what_is_nearer_to_the_arm_wins(self):
    settings = {('long', 'hmpo'): {'optim.learning_rate': 0.5, 'loss.p': 9.0}}
    run = next(
      run
      for run in _runs(_plan(), settings.items())
      if run[:3] == ('long', 'hmpo', 4)
    )
    config = design.configuration(run, '/warm')
    self.assertEqual(config.task.num_digits, 9)
    self.assertEqual(config.num_steps, 5)
    self.assertEqual(config.loss.p, -1.0)  # the variant's, not the tuned one
    self.assertEqual(config.optim.learning_rate, 0.5)
    self.assertEqual(config.optim.tau, 8.0)
    self.assertEqual(config.seed, 4)
    self.assertEqual(config.warm_start.folder, '/warm')

  def test_a_replay_takes_the_order_of_another_seed_of_its_task(self):
    sources = {}
    for run in _runs(_plan()):
      if run.variant == 'yoked':
        source = pathlib.PurePath(run.overrides['exponent.path'])
        self.assertEqual(source, _FOLDER / run.source / 'metrics.jsonl')
        self.assertEqual(run.source.parts[:2], (run.task, 'moving'))
        sources[run.seed] = run.source.name
    self.assertEqual(sources, {3: 'seed-4', 4: 'seed-3', 7: 'seed-4'})

  def test_sources_stay_when_a_plan_gets_more_seeds(self):
    few, many = (_runs(_plan(seeds=range(n))) for n in (4, 10))
    sources = lambda runs: {run.folder: run.source for run in runs}
    self.assertLessEqual(sources(few).items(), sources(many).items())

  def test_what_stands_for_a_replay_needs_no_file(self):
    for run in _runs(_plan()):
      other = design.unreplayed(run)
      self.assertNotIn('exponent.path', other.overrides)
      self.assertIsNone(other.source)
      if not run.source:
        self.assertEqual(other, run)

  def test_some_variants_and_the_first_seeds(self):
    plan = _plan()
    some = design.chosen(plan, _runs(plan), ['hmpo', 'gspo'], 2)
    self.assertEqual(
      {(run.variant, run.seed) for run in some},
      {('hmpo', 3), ('hmpo', 4), ('gspo', 3), ('gspo', 4)},
    )
    self.assertEqual(design.chosen(plan, _runs(plan), [], 0), _runs(plan))
    with self.assertRaisesRegex(config_lib.ConfigError, '--only: hnpo: no var'):
      design.chosen(plan, _runs(plan), ['hnpo'], 0)

  def test_keys_of_all_runs_win_over_those_of_tasks(self):
    plan = design.with_base(_plan(), {'num_steps': 2, 'task.num_digits': 3})
    self.assertEqual({run.overrides['num_steps'] for run in _runs(plan)}, {2})
    self.assertEqual(
      {run.overrides['task.num_digits'] for run in _runs(plan)}, {3}
    )
    self.assertEqual(design.horizon(plan), 2)

  def test_an_override_that_is_no_key(self):
    plan = _plan(variants={'odd': design.Variant({'loss.q': 1.0})})
    with self.assertRaisesRegex(config_lib.ConfigError, 'config.loss.q: unkn'):
      design.configuration(_runs(plan)[0], '')

  def test_description_is_json_and_names_every_run(self):
    plan = _plan(
      variants={'open': design.Variant({'optim.tau': float('inf')})},
      contrasts=(),
    )
    text = json.dumps(
      description.of(plan, _runs(plan), {('short', 'open'): {}}),
      allow_nan=False,
    )
    content = json.loads(text)
    self.assertEqual(
      content['variants']['open']['overrides'], {'optim.tau': 'inf'}
    )
    self.assertEqual(content['horizon'], 5)
    self.assertLen(content['runs'], 6)


class CheckTest(parameterized.TestCase):
  @parameterized.parameters(
    ({'seeds': (1, 1)}, 'seeds = '),
    ({'tasks': {}}, 'tasks'),
    ({'variants': {'own': design.Variant()}}, "'own' is no name"),
    ({'tuning': None}, 'need a tuning'),
    (
      {'contrasts': [design.Contrast('hmpo', 'gspq', 'area')]},
      "'gspq' is not a variant",
    ),
    (
      {'contrasts': [design.Contrast('hmpo', 'gspo', 'areas')]},
      'area, collapse',
    ),
    (
      {'tuning': design.Tuning((1e-3,), (0.1,), (7, 8))},
      r'\[7\] are seeds of the plan too',
    ),
    ({'tuning': design.Tuning((1e-3, 1e-4), (0.1,), (8,))}, 'must ascend'),
    ({'variants': {'a': design.Variant(settings='b')}}, "settings = 'b'"),
    (
      {'variants': {'a': design.Variant(), 'b': design.Variant(settings='a')}},
      'must have settings of its own',
    ),
    ({'variants': {'a': design.Variant(clip_frac=0.1)}}, 'must name a variant'),
    ({'variants': {'a': design.Variant(replays='b')}}, "replays = 'b'"),
    ({'seeds': (1,)}, 'two seeds'),
    ({'seeds': 3}, 'this is no plan .TypeError'),
    ({'seeds': (1.0, 2.0)}, 'different integers'),
    ({'variants': {}}, 'one or more'),
    (
      {'variants': {'gspo': {'loss.p': 0.0}}},
      'this is no plan .AttributeError',
    ),
    ({'variants': {'../x': design.Variant()}}, 'is no name'),
    ({'variants': {'a,b': design.Variant()}}, 'is no name'),
    ({'tasks': {'report': {}}}, "'report' is no name"),
    ({'tasks': {'a': {}, 'b': {'num_steps': 3}}}, 'same on all'),
    (
      {'variants': {'a': design.Variant({'num_steps': 3})}},
      'same for all variants',
    ),
    (
      {
        'variants': {
          'a': design.Variant(replays='b'),
          'b': design.Variant(replays='a'),
        }
      },
      'replays none',
    ),
    ({'variants': {'a': design.Variant({'loss.p': {1}})}}, 'not JSON'),
    ({'alpha': 0.6}, 'alpha = 0.6'),
    ({'margins': {'area': -1.0}}, r"margins\['area'\] = -1.0"),
    ({'reference': 'gsop'}, "reference: 'gsop' is unknown"),
    ({'margins': {'arae': 1.0}}, "'arae' is unknown: must be one of area"),
    ({'ladders': {'l': ('short', 'long')}}, 'two or more, ascending'),
    ({'ladders': {'short': ('short', 'long')}}, "ladders: 'short' is no name"),
    (
      _LADDER
      | {'variants': {'a': design.Variant({'optim.learning_rate': 0.1})}},
      'learning rate of its own',
    ),
    (
      _LADDER
      | {
        'tasks': {
          **design.rungs('l', 1e-3, (1,)),
          **design.rungs('l', 1e-3, (2,), {'reward.kind': 'exact'}),
        }
      },
      'must differ in optim.learning_rate alone',
    ),
    (
      {'contrasts': [design.Contrast('hmpo', 'gspo', 'rung', 'short')]},
      'rung must be of a ladder: none',
    ),
    (
      {'contrasts': [design.Contrast('hmpo', 'gspo', 'area')]},
      'must name its task, one of short, long',
    ),
    (
      {
        'contrasts': [
          design.Contrast('hmpo', 'gspo', 'collapse', 'short', 'long')
        ]
      },
      'collapse must be of one task alone',
    ),
    (
      {
        'contrasts': [design.Contrast('hmpo', 'gspo', 'area', 'short', 'short')]
      },
      'subtracts itself',
    ),
    (
      {'contrasts': [design.Contrast('hmpo', 'gspo', 'area', 'shrot')]},
      "'shrot' is unknown",
    ),
    (
      {
        'contrasts': [
          design.Contrast('hmpo', 'gspo', 'area', 'short'),
          design.Contrast('hmpo', 'gspo', 'area', 'long'),
        ],
        'family': 1,
      },
      'family = 1: must be 0 or at least the 2',
    ),
    (
      {'tuning': design.Tuning((1e-3,), (0.1,), (8,), final_seeds=(8,))},
      r'tuning.final_seeds: \[8\]',
    ),
    ({'failure_reward': float('nan')}, 'failure_reward = nan'),
    (
      {'contrasts': [design.Contrast('hmpo', 'hmpo', 'area')]},
      'is no contrast',
    ),
    (
      {
        'tasks': {'sort': {}},
        'contrasts': [
          design.Contrast('hmpo', 'gspo', 'area', task) for task in ('', 'sort')
        ],
      },
      'stands there twice',
    ),
    (
      {'contrasts': [design.Contrast('hmpo', 'gspo', 'area', 'short')] * 2},
      'twice',
    ),
    (
      {
        'contrasts': [
          design.Contrast('hmpo', 'gspo', 'area', 'short'),
          design.Contrast('gspo', 'hmpo', 'area', 'short'),
        ]
      },
      'turned round',
    ),
    (
      {'contrasts': [design.Contrast('hmpo', 'moving', 'area')]},
      'exploratory=False',
    ),
  )
  def test_what_makes_no_plan(self, changes, words):
    defaults = {} if 'contrasts' in changes else {'contrasts': ()}
    with self.assertRaisesRegex(config_lib.ConfigError, words):
      rules.check(_plan(**defaults | changes))

  def test_a_plan_that_can_run(self):
    rules.check(_plan())

  def test_a_ladder_is_told_with_its_rates(self):
    rungs = design.rungs('sort', 3e-4, (1, 2.5), {'task.num_digits': 6})
    self.assertEqual(
      rungs['sort-x2.5'], {'task.num_digits': 6, 'optim.learning_rate': 7.5e-4}
    )
    plan = _plan(
      tasks=rungs,
      ladders={'sort': tuple(rungs)},
      variants={name: design.Variant({}, exploratory=False) for name in 'ab'},
      contrasts=[design.Contrast('a', 'b', 'rung', 'sort')],
      margins={'rung': 0.5},
      family=5,
      tuning=None,
    )
    rules.check(plan)
    about = description.of(plan, design.runs(plan, {}, _FOLDER), {})
    self.assertEqual(
      about['ladders'], {'sort': {'sort-x1': 3e-4, 'sort-x2.5': 7.5e-4}}
    )
    self.assertEqual(
      about['margins'] | {'area': 0.02, 'rung': 0.5}, about['margins']
    )
    self.assertEqual(about['contrasts'][0]['name'], 'a - b on sort')


class DoctorTest(absltest.TestCase):
  def test_one_update_in_all_arms_is_one_algorithm(self):
    once = {'train.num_epochs': 1, 'train.num_minibatches': 1}
    plan = _plan(base=once, seeds=range(20))
    found = doctor.objections(plan, _some_runs(plan))
    self.assertLen(found, 1)
    self.assertIn('all means are one algorithm', found[0])
    stale = _plan(base=once | {'rollout.staleness': 1}, seeds=range(20))
    self.assertEmpty(doctor.objections(stale, _some_runs(stale)))

  def test_seeds_show_no_effect_beyond_the_whole_reward(self):
    label = 'smallest effect they show with power .8'
    row = lambda **changes: dict(doctor.power_rows(_plan(**changes)))[label]
    self.assertRegex(row(seeds=range(10)), r'^0\.0\d+ of held-out reward, if')
    for seeds in (range(1), range(2)):
      self.assertStartsWith(row(seeds=seeds, expected_sd=0.2), 'none: ')

  def test_too_few_seeds_for_the_contrasts(self):
    contrasts = [
      design.Contrast(*arms, outcome)
      for arms in (('hmpo', 'gspo'), ('gspo', 'hmpo'))
      for outcome in ('area', 'collapse')
    ]
    few = _plan(seeds=range(7), contrasts=contrasts)
    self.assertIn(
      "7 seeds can't decide 4", doctor.objections(few, _some_runs(few))[0]
    )
    enough = _plan(seeds=range(8), contrasts=contrasts)
    self.assertEmpty(doctor.objections(enough, _some_runs(enough)))
    # As many seeds are too few where other plans' contrasts count too.
    shared = dataclasses.replace(enough, family=7)
    self.assertIn(
      "8 seeds can't decide 7", doctor.objections(shared, _some_runs(shared))[0]
    )
    self.assertNotEqual(doctor.power_rows(shared), doctor.power_rows(enough))
    explored = dataclasses.replace(few, exploratory=True)
    self.assertEmpty(doctor.objections(explored, _some_runs(explored)))

  def test_a_run_that_can_not_start_is_named(self):
    plan = _plan(
      variants={'bad': design.Variant({'loss.clip': 'none'})}, contrasts=()
    )
    found = doctor.faults(_runs(plan))
    self.assertLen(found, 6)
    self.assertIn('short/bad/seed-3: config.loss.clip', found[0])
    self.assertEmpty(doctor.objections(plan, _runs(plan)))

  def test_programs_are_told_apart_by_what_is_static(self):
    plan = _plan(
      variants={
        'a': design.Variant({'loss.p': 0.5}),
        'b': design.Variant({'optim.tau': float('inf')}),
        'c': design.Variant({'loss.clip_center': 'geometric'}),
      },
      contrasts=(),
    )
    # Tasks are static too.
    made = doctor.programs(_runs(plan))
    self.assertLen(made, 4)
    # Arms share the warm start of each task and seed.
    self.assertEqual(
      [len(program.warm_starts) for program in made], [3, 0, 3, 0]
    )

  def test_the_start_of_each_task_is_looked_at_once(self):
    plan = _plan(
      tasks=_LADDER['tasks'] | {'exact': {'reward.kind': 'exact'}},
      ladders=_LADDER['ladders'],
      variants={'a': design.Variant()},
      contrasts=(),
    )
    found = doctor.starts(plan, doctor.programs(_runs(plan)))
    self.assertEqual(
      [run.name for run in found.values()], ['l-x1/a/seed-3', 'exact/a/seed-3']
    )

  def test_a_template_must_reach_neither_start_nor_target(self):
    plan = _plan(target=0.6)
    found = lambda template: doctor.start_objections(
      plan, {'short': _START._replace(template_reward=template)}
    )
    self.assertEmpty(found(0.49))
    (start,) = found(0.5)
    self.assertIn('earns a reward of 0.500, the policy 0.500 before', start)
    _, target = found(0.6)
    self.assertIn('which reaches the target 0.6', target)

  def test_evaluations_of_records_and_of_checkpoints_are_counted(self):
    sizes = {'num_steps': 300, 'eval.every': 20, 'checkpoint.every': 50}
    program, *_ = doctor.programs(_runs(_plan(base=sizes)))
    # Before the first step, 15 for records and at steps 50, 150 and 250.
    self.assertEqual(program.num_evaluations, 1 + 15 + 3)


def _some_runs(plan):
  """Without replays, which need a file."""
  return [run for run in _runs(plan) if run.variant != 'yoked']


class ConfigsTest(parameterized.TestCase):
  @parameterized.parameters(
    ('plan', 4 * 7 * 12),
    ('plan_long', 4 * 2 * 8),
    ('plan_ladder', 4 * 7 * 12),
    ('plan_ladder:pilot', 9 * 8),
    ('plan_calm', 9 * 2 * 16),
    ('plan_own', 9 * 16),
    ('plan_moving', 10 * 16),
    ('plan_controls', 15 * 8),
    ('plan_logits', 2 * 4 * 12),
    ('plan_logits:pilot', 4 * 4),
    ('plan_logits:query', 2 * 10 * 8),
    ('plan_atlas', 31 * 5),
    ('plan_quick', 4 * 3),
  )
  def test_plans_of_the_repository(self, name, num_runs):
    name, *part = name.split(':')
    plan = runpy.run_path(str(_CONFIGS / f'{name}.py'))['get_config'](*part)
    rules.check(plan)
    runs = design.runs(plan, {}, _FOLDER)
    self.assertLen(runs, num_runs)
    self.assertEmpty(doctor.objections(plan, runs))
    self.assertLessEqual(len(plan.contrasts), 4)


if __name__ == '__main__':
  absltest.main()

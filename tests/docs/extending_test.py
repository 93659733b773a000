"""The examples of docs/extending.md fit the code and do what they say."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

from absl.testing import absltest
from absl.testing import parameterized

_ROOT = pathlib.Path(__file__).parents[2]
_COPIED = ('configs', 'experiments', 'hmpo_jax', 'tests')
_NAMES = ('key', 'loss', 'task', 'optimizer', 'metric')
_MOST_LINES = 40  # outside tests, of a loss

# Of four responses one earns 1: mean 1/4, deviation 1/2 (divisor 3), so that the
# advantages are -1/2 and 3/2.
_KEY = """
import jax
import jax.numpy as jnp
from hmpo_jax import config
from hmpo_jax.config import traced
from hmpo_jax.training import learner
c = config.default_config()
c.rollout.num_prompts, c.rollout.group_size, c.advantage.eps = 1, 4, 0.
for bound in (1., .25):
  c.train.max_advantage = bound
  config.validate(c)
  print(*learner._advantages(traced.static(c), traced.hparams(c),
                             jnp.array([0., 0., 0., 1.]), jax.random.key(0))[0])
"""
# Two responses with A = 2 and A = -1, whose log-probabilities have the means -2
# and -1.5. Ratios are 2 in the first, which keeps weight 1, and 1/2, 1/2 in the
# second, whose product is 1/4: J = (2 * -2 + -1 * 1/4 * -1.5) / 2 = -1.8125.
_LOSS = """
import jax.numpy as jnp
from hmpo_jax.kernels import losses
new = jnp.array([[-1., -3.], [-1., -2.]])
old = new - jnp.log(jnp.array([[2., 2.], [.5, .5]]))
args = new, old, jnp.array([2., -1.]), jnp.ones((2, 2), bool)
print(losses.LOSSES['topr'](*args)[0], losses.LOSSES['reinforce'](*args)[0])
"""
_TASK = """
import jax.numpy as jnp
from hmpo_jax.tasks import digits
task = digits.make('reverse', 3)
print(task.answer(jnp.array([5, 3, 4, digits.EQUALS])) - digits.ZERO)
"""
# The first step is -rate sign(g). Then the clip, as the logit is 4 tau: root of
# 1/4 for query and key each, of 1 - 0.5 to 0.25 and of 1 + 0.5 to 0.75.
_OPTIMIZER = """
import jax.numpy as jnp
from hmpo_jax import config
from hmpo_jax.config import traced
from hmpo_jax.optim import factory, qk_weights
c = config.default_config()
c.optim.name, c.optim.learning_rate, c.optim.tau = 'lion', .5, 100.
weight = lambda name: (qk_weights.Weight((name,), heads=-2),)
tx = factory.make(
    traced.static(c).optim, traced.hparams(c),
    dimension_numbers=lambda p: {k: None for k in p},
    attention={'a': qk_weights.Attention(1, 1, weight('q'), weight('k'))})
params = {k: jnp.ones((1, 1, 1)) for k in ('q', 'k', 'other')}
grads = {'q': params['q'] * 7, 'k': params['k'] * -.01, 'other': params['q']}
step, _ = tx.update(grads, tx.init(params), params,
                    max_logits={'a': jnp.array([400.])})
print(*(float((params[k] + step[k]).squeeze()) for k in params))
"""
# Ratios are 4, 2 in the first response and 1/2, 1 in the second: their products
# 8 and 1/2, of which the first has the larger logarithm. All that reads the
# table knows the metric.
_METRIC = """
import jax.numpy as jnp
from hmpo_jax.analysis import measures
from hmpo_jax.kernels import losses
from hmpo_jax.run import tensorboard
from hmpo_jax.training import metric_table
name = 'log_ratio/sum_abs_max'
log_ratio = jnp.log(jnp.array([[4., 2.], [.5, 1.]]))
args = log_ratio, 0 * log_ratio, jnp.array([2., -1.]), jnp.ones((2, 2), bool)
value = losses.LOSSES['reinforce'](*args)[1][name]
print(f'{value / jnp.log(2.):.5f}', metric_table.find(name).reduce,
      tensorboard.tag(name), measures.find(f'{name}:max').section,
      *measures.bounds(name))
"""
CHOSEN = (
  '--config.train.max_advantage=1',
  '--config.loss.name=topr',
  '--config.loss.taper_max=0.5',
  '--config.task.name=reverse',
  '--config.optim.name=lion',
)


def diffs(text: str) -> dict[str, str]:
  """The diff under each second-level heading that has one, by its last word."""
  found = {}
  for section in re.split(r'^## ', text, flags=re.M)[1:]:
    title = section.splitlines()[0].split()[-1]
    for body in re.findall(r'^```diff\n(.*?)^```$', section, re.M | re.S):
      found[title] = found.get(title, '') + body
  return found


def changed_lines(diff: str) -> int:
  """Lines that a diff adds or removes outside tests/."""
  count, is_test = 0, False
  for line in diff.splitlines():
    if line.startswith('diff --git '):
      is_test = line.split()[-1].startswith('b/tests/')
    elif not line.startswith(('--- ', '+++ ')) and not is_test:
      count += line.startswith(('+', '-'))
  return count


_DIFFS = diffs((_ROOT / 'docs' / 'extending.md').read_text(encoding='utf-8'))


class ExtendingTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.copy = pathlib.Path(folder.name).resolve()
    ignored = shutil.ignore_patterns('__pycache__')
    for name in _COPIED:
      shutil.copytree(_ROOT / name, self.copy / name, ignore=ignored)
    shutil.copy(_ROOT / 'setup.cfg', self.copy)

  def _apply(self, name):
    """Applies as a reader would; git must not look for a repository above."""
    subprocess.run(
      ['git', 'apply', '-'],
      cwd=self.copy,
      input=_DIFFS[name],
      env=os.environ | {'GIT_CEILING_DIRECTORIES': str(self.copy.parent)},
      text=True,
      check=True,
    )

  def _python(self, *arguments):
    """What Python prints in the copy."""
    result = subprocess.run(
      [sys.executable, *arguments],
      cwd=self.copy,
      env=os.environ | {'PYTHONPATH': str(self.copy)},
      capture_output=True,
      text=True,
      check=False,
    )
    self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
    return result.stdout

  def test_there_is_one_of_each(self):
    self.assertCountEqual(_DIFFS, _NAMES)

  # By hand in the scripts above.
  @parameterized.parameters(
    ('key', _KEY, '-0.5 -0.5 -0.5 1.0\n-0.25 -0.25 -0.25 0.25'),
    ('loss', _LOSS, '1.8125 1.25'),
    ('task', _TASK, '[ 2  1  3 -1]'),
    ('optimizer', _OPTIMIZER, '0.25 0.75 0.5'),
    (
      'metric',
      _METRIC,
      '3.00000 max 3_ratios/log_ratio/sum_abs_max ratios 0.0 inf',
    ),
  )
  def test_each_alone_has_its_value(self, name, script, expected):
    self._apply(name)
    self.assertEqual(self._python('-c', script).strip(), expected)

  def test_all_pass_their_tests_and_make_a_run(self):
    for name in _NAMES:
      self._apply(name)
    self._python(
      '-m',
      'pytest',
      '-n',
      '0',
      '-p',
      'no:cacheprovider',
      'tests/kernels/token_losses_test.py',
      'tests/tasks/digits_test.py',
      'tests/kernels/loss_errors_test.py',
      'tests/config/keys_test.py',
      'tests/training/learner_test.py',
      'tests/kernels/loss_metrics_test.py',
      '-k',
      'TOPR or reverse or sizes or every_loss or options_are or TableTest '
      'or OptionsTest or max_advantage or of_log_ratios',
    )
    self._python(
      'experiments/main.py',
      '--config=configs/smoke.py',
      '--workdir=run',
      '--config.num_steps=2',
      '--config.warm_start.num_steps=1',
      *CHOSEN,
    )
    config = json.loads((self.copy / 'run/config.json').read_text('utf-8'))
    self.assertEqual(config['config']['loss']['taper_max'], 0.5)
    lines = (self.copy / 'run/metrics.jsonl').read_text('utf-8').splitlines()
    records = [json.loads(line) for line in lines]
    self.assertEqual([record['step'] for record in records], [1, 2])
    for record in records:
      self.assertGreater(record['log_ratio/sum_abs_max'], 0)

  def test_a_loss_takes_few_lines(self):
    self.assertBetween(changed_lines(_DIFFS['loss']), 1, _MOST_LINES)

  def test_lines_are_counted_outside_tests(self):
    head = 'diff --git a/{0} b/{0}\n--- a/{0}\n+++ b/{0}\n@@ -1,2 +1,2 @@\n'
    body = ' same\n-old\n+new\n+--- newer\n'
    diff = ''.join(head.format(name) + body for name in ('x.py', 'tests/x.py'))
    self.assertEqual(changed_lines(diff), 3)


if __name__ == '__main__':
  absltest.main()

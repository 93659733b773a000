"""Any valid configuration trains, any other ends in one line and code 2."""

import contextlib
import importlib.util
import io
import math
import pathlib

from absl.testing import absltest
from absl.testing import flagsaver
import hypothesis
from hypothesis import strategies as st
import jax
import numpy as np

from hmpo_jax import config as config_lib
from hmpo_jax.config import files as config_files
from hmpo_jax.kernels import advantages
from hmpo_jax.kernels import kl
from hmpo_jax.kernels import losses
from hmpo_jax.kernels import ratios
from hmpo_jax.training import programs
from tests import small

_ROOT = pathlib.Path(__file__).parents[2]
_QUIET = {'deadline': None, 'derandomize': True, 'database': None}
_KEYS = sorted(config_lib.flat(config_lib.default_config().to_dict()))

_POSITIVE = st.one_of(st.floats(1e-6, 1e38), st.just(math.inf))
_TRACED = st.fixed_dictionaries(
  {
    'loss__p': st.floats(-50, 50),
    'loss__clip_eps_low': st.floats(1e-6, 1 - 2.0**-20),
    'loss__clip_eps_high': _POSITIVE,
    'loss__log_ratio_max': _POSITIVE,
    'loss__p_clip': st.floats(-50, 50),
    'loss__p_grad': st.floats(-50, 50),
    'loss__dual_clip': st.floats(1.01, 1e6),
    'exponent__kind': st.sampled_from(['linear', 'cosine']),
    'exponent__end': st.floats(-50, 50),
    'exponent__num_steps': st.floats(1, 1e6),
    'rollout__temperature': st.floats(1e-3, 1e3),
    'rollout__mask_truncated': st.booleans(),
    'advantage__permute': st.booleans(),
    'train__max_grad_norm': _POSITIVE,
    'optim__learning_rate': st.floats(0, 1e3),
    'optim__weight_decay': st.floats(0, 1e3),
    'optim__tau': _POSITIVE,
    'optim__monitor_tau': st.floats(1e-6, 1e6),
    'optim__qk_clip': st.just('weights'),
    'optim__qk_alpha': st.floats(0, 1),
    'seed': st.integers(0, 2**31 - 1),
  }
)
_STATIC = st.fixed_dictionaries(
  {
    'task__name': st.sampled_from(['sort', 'addition']),
    'task__num_digits': st.integers(4, 9),
    'model__num_layers': st.integers(1, 3),
    'model__head_dim': st.sampled_from([2, 4]),
    'model__num_kv_heads': st.sampled_from([1, 2, 4]),
    'model__qk_bias': st.booleans(),
    'model__tie_embeddings': st.booleans(),
    'rollout__staleness': st.integers(0, 2),
    'rollout__old_logprobs': st.sampled_from(['recompute', 'sampler']),
    'advantage__baseline': st.sampled_from(advantages.BASELINES),
    'advantage__scale': st.sampled_from(['std', 'none']),
    'advantage__ddof': st.sampled_from([0, 1]),
    'loss__name': st.sampled_from(sorted(losses.LOSSES)),
    'loss__aggregation': st.sampled_from(ratios.AGGREGATIONS),
    'loss__kl_estimator': st.sampled_from(['none', *kl.LOSS_ESTIMATORS]),
    'loss__entropy_bonus': st.booleans(),
    'reward__kl_estimator': st.sampled_from(['none', *kl.REWARD_ESTIMATORS]),
    'mechanism__every': st.integers(0, 1),
    'train__num_epochs': st.integers(1, 3),
    'train__num_minibatches': st.sampled_from([1, 2, 4, 8]),
    'train__num_microbatches': st.sampled_from([1, 2, 4]),
  }
)
_WORDS = st.one_of(
  st.sampled_from(['nan', 'inf', '-inf', '', 'true', '0', '-1', '1e400']),
  st.integers().map(str),
  st.floats().map(str),
  st.text('abc=:./- ', max_size=8),
)


def _load_main():
  spec = importlib.util.spec_from_file_location(
    'hmpo_main', _ROOT / 'experiments' / 'main.py'
  )
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


_main = _load_main()


class ConfigPropertyTest(absltest.TestCase):
  def _assert_trains(self, config):
    run = programs.Programs(config)
    state = run.first_state(run.warm_params())
    for _ in range(2):
      state, _ = run.step(state, True, run.hparams)
    for leaf in jax.tree.leaves(state.params):
      self.assertTrue(np.all(np.isfinite(leaf)))
    self.assertEqual(state.step, 2)

  @hypothesis.settings(max_examples=12, **_QUIET)
  @hypothesis.given(_TRACED)
  def test_traced_values_train(self, values):
    self._assert_trains(small.config(mechanism__every=1, **values))

  @hypothesis.settings(max_examples=2, **_QUIET)
  @hypothesis.given(_STATIC)
  def test_static_values_train(self, values):
    self._assert_trains(small.config(**values))

  @hypothesis.settings(max_examples=300, **_QUIET)
  @hypothesis.given(st.sampled_from(_KEYS), _WORDS)
  def test_any_override_is_taken_or_refused_in_one_line(self, key, word):
    self._assert_taken_or_refused(f'--config.{key}={word}')

  @hypothesis.settings(max_examples=100, **_QUIET)
  @hypothesis.given(st.text('config.seedp=-1 ', max_size=20))
  def test_any_argument_is_taken_or_refused_in_one_line(self, word):
    self._assert_taken_or_refused(word)

  def test_argument_of_a_configuration_names_its_folder(self):
    path = _ROOT / 'configs' / 'stress.py'
    for argument, folder, num_digits in (
      ('', 'stress', 8),
      (':long', 'stress-long', 511),
    ):
      with flagsaver.flagsaver():
        config, workdir = _main.parse_flags(
          ['main.py', f'--config={path}{argument}']
        )
      self.assertEqual(workdir, f'runs/{folder}')
      self.assertEqual(config.task.num_digits, num_digits)
    # A path in the argument stays one folder.
    self.assertEqual(config_files.run_name(f'{path}:a/b'), 'stress-a_b')

  def _assert_taken_or_refused(self, argument):
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
      try:
        config, _ = _main.parse_flags(
          ['main.py', f'--config={_ROOT}/configs/smoke.py', argument]
        )
      except SystemExit as stop:
        self.assertEqual(stop.code, 2)
        self.assertLen(errors.getvalue().splitlines(), 1)
        self.assertStartsWith(errors.getvalue(), 'error: ')
      else:
        config_lib.validate(config)


if __name__ == '__main__':
  absltest.main()

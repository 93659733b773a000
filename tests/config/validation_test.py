"""Bad configurations end in one clear line."""

import math

from absl.testing import absltest
from absl.testing import parameterized

from hmpo_jax import config as config_lib


class ConfigTest(parameterized.TestCase):
  def test_defaults_are_valid(self):
    config_lib.validate(config_lib.default_config())

  @parameterized.parameters(
    'loss.clip_eps_low',
    'loss.clip_eps_high',
    'tracking.eps_min',
    'control.epsilon_low',
  )
  def test_clip_range_of_rounding_is_refused(self, key):
    section, last = key.split('.')
    config = config_lib.default_config()
    config[section][last] = 9e-7
    with self.assertRaisesRegex(
      config_lib.ConfigError, rf'{key} = 9e-07: must be .*1e-6'
    ):
      config_lib.validate(config)
    # One that is used, so that nothing else is wrong with it.
    config.control.function = 'hmpo_jax.run.controllers:Adaptive'
    config.tracking.rate = 0.1
    config[section][last] = 1e-6
    config.tracking.eps_min = 1e-6
    config_lib.validate(config)

  def test_histories_reach_back_five_steps_or_more(self):
    config = config_lib.default_config()
    config.control.history = 5
    config_lib.validate(config)
    config.control.history = 4
    with self.assertRaisesRegex(
      config_lib.ConfigError, 'control.history = 4: must be at least 5'
    ):
      config_lib.validate(config)

  @parameterized.parameters(
    ('seed', -1),
    ('num_steps', 0),
    ('task.name', 'poetry'),
    ('task.num_digits', 1),
    ('model.head_dim', 5),
    ('model.num_kv_heads', 3),
    ('model.rope_theta', math.inf),
    ('rollout.group_size', 1),
    ('rollout.temperature', 0.0),
    ('rollout.temperature', math.nan),
    ('rollout.staleness', -1),
    ('advantage.ddof', 2),
    ('advantage.baseline', 'median'),
    ('loss.p', math.inf),
    ('loss.p', math.nan),
    ('loss.p', 1e39),
    ('rollout.num_prompts', 3 * 10**9),
    ('rollout.temperature', 1e-46),
    ('rollout.temperature', 1e-7),
    ('model.softcap', 1e-7),
    ('model.dtype', 'float16'),
    ('model.logits_dtype', 'float64'),
    ('model.remat', 'all'),
    ('rollout.top_k', -1),
    ('rollout.top_p', 0.0),
    ('rollout.bucket', -1),
    ('rollout.mismatch_frac', 1.5),
    ('rollout.mismatch_size', 0.0),
    ('task.stop', -2),
    ('optim.momentum', 0.999999999),
    ('loss.clip_eps_low', 1.0),
    ('loss.clip_eps_high', 0.0),
    ('loss.log_ratio_max', math.nan),
    ('loss.kl_weight', 0.1),
    ('loss.kl_estimator', 'k1'),
    ('loss.kl_off_policy', True),
    ('loss.entropy_weight', 0.1),
    ('loss.p_clip', math.nan),
    ('loss.clip', 'tokens'),
    ('loss.clip_center', 'zero'),
    ('loss.dual_clip', 1.0),
    ('loss.length_scale', 8.0),
    ('loss.tau_positive', 2.0),
    ('loss.aggregation', 'mean'),
    ('reward.kl_weight', 0.1),
    ('reward.kl_estimator', 'k3+'),
    ('exponent.kind', 'random'),
    ('exponent.num_steps', 0.0),
    ('tracking.target_low', 1.5),
    ('tracking.eps_max', 1.0),
    ('tracking.eps_min', 0.95),
    ('train.num_minibatches', 3),
    ('train.num_microbatches', 64),
    ('train.num_microbatches', 0),
    ('optim.learning_rate', -1.0),
    ('optim.momentum', 1.0),
    ('optim.qk_learning_rate_scale', -1.0),
    ('optim.qk_learning_rate_scale', math.inf),
    ('warm_start.query_scale', 0.0),
    ('optim.tau', 0.0),
    ('optim.tau', -math.inf),
    ('optim.tau', math.nan),
    ('optim.monitor_tau', math.nan),
    ('optim.qk_alpha', 1.5),
    ('optim.qk_alpha', -0.1),
    ('optim.muon_heads', 'split'),
    ('optim.coefficients', 'kellerjordan'),
    ('optim.products', 'float16'),
    ('optim.qk_clip', 'gain'),
    ('optim.qk_clip', 'on'),
    ('optim.decay', 1.5),
    ('optim.decay_steps', 0.0),
    ('warm_start.optimizer', 'sgd'),
    ('model.qk_norm', True),
  )
  def test_value_is_named(self, key, value):
    config = config_lib.default_config()
    *sections, last = key.split('.')
    node = config
    for section in sections:
      node = node[section]
    node[last] = value
    with self.assertRaisesRegex(config_lib.ConfigError, key) as caught:
      config_lib.validate(config)
    self.assertNotIn('\n', str(caught.exception))

  @parameterized.parameters(
    ({'rollout.mismatch_frac': 0.1}, "rollout.old_logprobs = 'recompute'"),
    (
      {'rollout.old_logprobs': 'sampler', 'rollout.mismatch_size': 2.0},
      'rollout.mismatch_frac = 0.0',
    ),
    ({'loss.name': 'grpo', 'loss.clip': 'token'}, 'loss.clip'),
    ({'loss.name': 'grpo', 'loss.p': 1.0}, 'loss.p'),
    ({'optim.name': 'adamw', 'optim.nesterov': True}, 'optim.nesterov'),
    ({'optim.qk_clip': 'off', 'optim.qk_alpha': 1.0}, 'optim.qk_alpha'),
    ({'loss.name': 'sapo', 'loss.dual_clip': 3.0}, 'loss.dual_clip'),
    ({'loss.name': 'reinforce', 'tracking.rate': 0.1}, 'tracking.rate'),
    ({'loss.name': 'cispo', 'exponent.kind': 'learnable'}, 'exponent.kind'),
    ({'loss.clip': 'token', 'loss.p_clip': 0.0}, 'loss.p_clip'),
    (
      {'loss.clip': 'token_log', 'loss.clip_center': 'geometric'},
      'loss.clip_center',
    ),
    (
      {'exponent.kind': 'adaptive', 'exponent.gap_low': 0.1},
      'exponent.gap_low',
    ),
    (
      {'exponent.kind': 'adaptive', 'exponent.fast_window': 50.0},
      'exponent.fast_window',
    ),
    ({'exponent.kind': 'adaptive', 'exponent.low': 0.0}, 'exponent.low'),
    (
      {
        'exponent.kind': 'adaptive',
        'exponent.gap_quantiles': True,
        'exponent.gap_high': 1.5,
      },
      'exponent.gap_high',
    ),
    (
      {
        'exponent.kind': 'adaptive',
        'exponent.gap_quantiles': True,
        'exponent.slow_window': 129.0,
      },
      'exponent.slow_window',
    ),
    (
      {'exponent.kind': 'learnable', 'exponent.gap_quantiles': True},
      'exponent.gap_quantiles',
    ),
    ({'warm_start.muon_learning_rate': 1.0}, 'warm_start.muon_learning_rate'),
    ({'optim.decay_steps': 10.0}, 'optim.decay_steps'),
    ({'exponent.normalize': True}, 'exponent.normalize'),
    (
      {'exponent.kind': 'adaptive', 'exponent.path': 'metrics.jsonl'},
      'exponent.path',
    ),
    ({'exponent.kind': 'replayed'}, 'exponent.path'),
    (
      {
        'exponent.kind': 'replayed',
        'exponent.path': 'metrics.jsonl',
        'exponent.low': 0.0,
      },
      'exponent.low',
    ),
    ({'exponent.placebo': True}, 'exponent.placebo'),
    ({'exponent.kind': 'matched', 'exponent.end': 1.0}, 'exponent.end'),
    (
      {
        'warm_start.query_scale': 4.0,
        'model.qk_norm': True,
        'optim.qk_clip': 'off',
      },
      'warm_start.query_scale',
    ),
    ({'tracking.target_low': 0.5}, 'tracking.target_low'),
    ({'tracking.rate': 0.1, 'tracking.eps_min': 0.1}, 'tracking.eps_min'),
  )
  def test_what_does_nothing_or_contradicts_is_named(self, values, key):
    config = config_lib.default_config()
    config.update_from_flattened_dict(values)
    with self.assertRaisesRegex(config_lib.ConfigError, key):
      config_lib.validate(config)

  def test_cispo_may_have_no_lower_bound(self):
    config = config_lib.default_config()
    config.loss.name, config.loss.clip_eps_low = 'cispo', 1.0
    config_lib.validate(config)

  def test_unknown_key_names_the_nearest(self):
    config = config_lib.default_config()
    config.loss.clip_eps_hi = 0.1
    with self.assertRaisesRegex(
      config_lib.ConfigError,
      r'config\.loss\.clip_eps_hi: .*did you mean loss\.clip_eps_high',
    ):
      config_lib.validate(config)

  def test_missing_key_and_missing_section(self):
    config = config_lib.default_config()
    del config.loss.p
    with self.assertRaisesRegex(config_lib.ConfigError, r'config\.loss\.p'):
      config_lib.validate(config)
    config = config_lib.default_config()
    del config.loss
    config.loss = 3
    with self.assertRaisesRegex(config_lib.ConfigError, 'section'):
      config_lib.validate(config)

  @parameterized.parameters(
    ('model', 'qk_bias', 1),
    ('model', 'num_layers', True),
    ('task', 'name', 3.5),
  )
  def test_types_are_not_bent(self, section, key, value):
    config = config_lib.default_config()
    with config[section].ignore_type():
      config[section][key] = value
    with self.assertRaisesRegex(config_lib.ConfigError, f'{section}.{key}'):
      config_lib.validate(config)


if __name__ == '__main__':
  absltest.main()

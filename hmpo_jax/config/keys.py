"""Every key of a run's configuration, and its checks."""

from collections.abc import Mapping
import difflib
import math

import ml_collections
import numpy as np

from hmpo_jax.config import rules

_FLOAT32_MAX = 3.4e38


class ConfigError(ValueError):
  """A configuration that can't run; the message is one line for the user."""


def default_config() -> ml_collections.ConfigDict:
  """Returns all keys with their defaults: HMPO with MuonClip on sorting."""
  config = ml_collections.ConfigDict()
  config.seed = 0  # of parameters, prompts and sampling
  config.num_steps = 300  # rollouts, each with all its updates

  config.task = ml_collections.ConfigDict()
  config.task.name = 'sort'  # sort | addition | mapped_copy | file
  config.task.num_digits = 8  # digits to sort or to copy, or of each summand
  # Of a file: its path, see tasks/prompt_file.py, and what its tokens are.
  config.task.prompts = ''
  config.task.vocab_size = 0  # V
  config.task.pad = 0  # token outside prompt and response
  config.task.stop = 1  # token that ends a response; -1: none, all are full
  config.task.response_len = 0  # T, tokens after which a response is cut

  config.reward = ml_collections.ConfigDict()
  # share | exact: of the answer's tokens that stand at their place, or 1 where
  # the response is the answer and else 0
  config.reward.kind = 'share'
  # module:function or file.py:function on the host, see tasks/reward.py, in
  # place of that; '' is none.
  config.reward.function = ''
  config.reward.timeout = 60.0  # seconds for one call
  # none | k1 | abs | k2 | k3, of the response to the warm start, in nats
  config.reward.kl_estimator = 'none'
  config.reward.kl_weight = 0.0  # of that KL, taken from the reward
  # Leave responses whose reward is not finite out of their groups; else the
  # updates that see one of their groups are skipped.
  config.reward.exclude_nonfinite = False

  config.model = ml_collections.ConfigDict()
  config.model.num_layers = 2  # N_l
  config.model.embed_dim = 64  # D
  config.model.num_heads = 4  # H, query heads
  config.model.num_kv_heads = 2  # K, divides num_heads
  config.model.head_dim = 16  # Dh, even (rotary embedding)
  config.model.mlp_dim = 192  # F
  config.model.rope_theta = 10000.0  # base of the rotary frequencies
  config.model.norm_eps = 1e-6  # added to the mean square in RMSNorm
  config.model.qk_bias = False  # biases on the query and key projections
  config.model.qk_norm = False  # RMSNorm on queries and keys per head
  config.model.tie_embeddings = True  # output head is the embedding
  config.model.softcap = math.inf  # c of c tanh(logits / c); inf = off
  # float32 | bfloat16, of products and hidden states; parameters, norms,
  # softmax, log-probabilities and losses are float32 in any case.
  config.model.dtype = 'float32'
  # float32 | bfloat16 | float16, that attention logits are rounded to before
  # their softmax, as in a narrow kernel; beyond 65504 float16 is infinite.
  config.model.logits_dtype = 'float32'
  config.model.attention_entropy = False  # recorded, of each head of each layer
  # none | light | dots | layer: what the backward pass computes again: nothing,
  # norms, rotations and the inside of feed-forward layers (fastest on CPU, with
  # less memory), all but matrix products, or each layer (least memory).
  config.model.remat = 'light'

  config.rollout = ml_collections.ConfigDict()
  config.rollout.num_prompts = 16  # N per step
  config.rollout.group_size = 8  # G responses to each prompt
  config.rollout.temperature = 1.0  # divides the logits, sampler and loss alike
  # Draws from the k likeliest tokens (0 = all, 1 = greedy) and of these from
  # the likeliest of mass top_p (1 = all). Log-probabilities stay those of all
  # tokens: what truncation makes of ratios is a bias, see rollout/kept_mass.
  config.rollout.top_k = 0
  config.rollout.top_p = 1.0
  # Tokens by which the cache of keys and values grows; responses don't change.
  # Each of the sizes up to a whole response is a loop that is compiled. 0 is a
  # quarter of the response, but at least 16.
  config.rollout.bucket = 0
  config.rollout.staleness = 0  # steps by which the sampler's policy lags
  # old log-probabilities: 'recompute' by the training forward, or 'sampler',
  # which saves that pass; then the first ratios are 1 up to rounding only.
  config.rollout.old_logprobs = 'recompute'
  # Share of the tokens, drawn anew in each step, whose log-probability the
  # sampler tells by mismatch_size too high or too low, as a sampler that routes
  # tokens to other experts than the trainer does; with 'sampler' alone.
  config.rollout.mismatch_frac = 0.0
  config.rollout.mismatch_size = 1.0  # nats
  config.rollout.mask_truncated = False  # leave out responses without a stop

  config.advantage = ml_collections.ConfigDict()
  # mean | leave_one_out, of the group | none, which leaves rewards as they are
  config.advantage.baseline = 'mean'
  config.advantage.scale = 'std'  # std | none
  config.advantage.ddof = 1  # 0 or 1, of the standard deviation
  config.advantage.eps = 1e-6  # added to the standard deviation, reward units
  config.advantage.permute = False  # control: shuffled within the group

  # Keys of `loss` up to log_ratio_max are arguments of kernels/losses.py; one
  # that the loss doesn't take must keep its default.
  config.loss = ml_collections.ConfigDict()
  # power_mean | arithmetic_harmonic | gspo_token | grpo | cispo | sapo |
  # reinforce
  config.loss.name = 'power_mean'
  config.loss.p = -1.0  # order: 1 arithmetic, 0 geometric (GSPO), -1 HMPO
  config.loss.p_clip = math.inf  # order that decides what is clipped; inf = p
  config.loss.p_grad = math.inf  # order of the gradient's weights; inf = p
  config.loss.clip = 'sequence'  # sequence | token | token_log
  config.loss.clip_center = 'one'  # one | geometric | unbiased
  config.loss.clip_eps_low = 0.05  # ratio's distance below 1, in (0, 1]
  config.loss.clip_eps_high = 0.05  # ratio's distance above 1
  config.loss.dual_clip = math.inf  # bound on the ratio where A < 0, above 1
  config.loss.tau_positive = 1.0  # temperature of SAPO's gate where A > 0
  config.loss.tau_negative = 1.05  # and where A <= 0
  # sequence-mean-token-mean | token-mean | sequence-mean-token-sum
  config.loss.aggregation = 'sequence-mean-token-mean'
  config.loss.length_scale = 1.0  # tokens that divide sequence-mean-token-sum
  config.loss.log_ratio_max = 20.0  # nats per token, inf = off
  # none | abs | k2 | k3 | k3+, to the warm start
  config.loss.kl_estimator = 'none'
  config.loss.kl_weight = 0.0  # of that KL in the loss, per token
  config.loss.kl_off_policy = False  # weigh its tokens by their ratios
  config.loss.entropy_bonus = False
  config.loss.entropy_weight = 0.0  # of the entropy in the loss, per token

  # How p evolves from loss.p, see kernels/exponents.py.
  config.exponent = ml_collections.ConfigDict()
  # fixed | linear | cosine | learnable | matched | adaptive | replayed
  config.exponent.kind = 'fixed'
  config.exponent.end = -2.0  # linear, cosine: p after num_steps
  config.exponent.num_steps = 300.0  # linear, cosine: steps of the schedule
  config.exponent.rate = 0.1  # learnable: change of p per unit of dJ/dp
  # learnable: dJ/dp in units of its own size, mean |dJ/dp| of 100 updates; then
  # a rate of 0.01 goes from 0 to -2 in 40 steps where nothing turns it
  config.exponent.normalize = False
  config.exponent.placebo = False  # learnable: with the sign turned
  config.exponent.pull = 0.0  # learnable: towards prior, dJ/dp per unit of p
  config.exponent.prior = 0.0
  config.exponent.low = -2.0  # learnable, adaptive: bounds on p
  config.exponent.high = 2.0
  config.exponent.gap_low = 0.01  # adaptive: nats of log A - log H
  config.exponent.gap_high = 0.05
  # adaptive: both are quantiles, from 0 to 1, of the last slow_window gaps
  config.exponent.gap_quantiles = False
  config.exponent.trend = 0.1  # adaptive: relative excess that is a rise
  config.exponent.fast_window = 5.0  # adaptive: steps of the averages
  config.exponent.slow_window = 25.0
  config.exponent.step_size = 0.05  # adaptive: change of p per decision
  # replayed: metrics.jsonl of the run whose orders it takes, step by step; the
  # last one stays. See trajectory.py.
  config.exponent.path = ''

  # How the clip range follows clipped fractions, see kernels/clips.py.
  config.tracking = ml_collections.ConfigDict()
  config.tracking.rate = 0.0  # of log eps, per step; 0 = the range is fixed
  config.tracking.target_low = 0.2  # of the rows with A < 0
  config.tracking.target_high = 0.2  # of the rows with A > 0
  config.tracking.eps_min = 1e-4  # bounds on both widths
  config.tracking.eps_max = 0.9

  config.train = ml_collections.ConfigDict()
  config.train.num_epochs = 2  # passes over a rollout
  config.train.num_minibatches = 4  # updates per pass; divides the sequences
  # Parts of a minibatch that are in memory one at a time; divides its rows. The
  # update is the same.
  config.train.num_microbatches = 1
  config.train.max_grad_norm = math.inf  # global norm; inf = off
  # Updates skipped in a row for a numerical cause before the run stops.
  config.train.max_skips = 50

  config.optim = ml_collections.ConfigDict()
  config.optim.name = 'muon_clip'  # muon_clip | adamw
  config.optim.learning_rate = 3e-4  # update RMS is 0.2 times it under Muon
  config.optim.qk_learning_rate_scale = 1.0  # on that of query and key kernels
  config.optim.weight_decay = 0.0  # decoupled, times the learning rate
  # Factor of both learning rates, a controller's too, after decay_steps; linear
  # from 1 in the first step on. 1 = off
  config.optim.decay = 1.0
  config.optim.decay_steps = 300.0
  # Muon, see optim/muon.py: of embeddings, norms, biases and head, which AdamW
  # moves.
  config.optim.adam_learning_rate = 3e-4
  config.optim.adam_weight_decay = 0.0
  config.optim.momentum = 0.95  # in [0, 1)
  config.optim.nesterov = False  # else the heavy ball
  # joint | per_head: what of an attention kernel is one matrix
  config.optim.muon_heads = 'joint'
  config.optim.coefficients = 'keller'  # keller | polar_express
  config.optim.products = 'float32'  # float32 | bfloat16, of Newton-Schulz
  config.optim.adam_b1 = 0.9
  config.optim.adam_b2 = 0.95
  # off (monitored only) | weights | gain (of the norms, with model.qk_norm)
  config.optim.qk_clip = 'weights'
  # Largest attention logit that is left alone; inf = all, in the program that
  # also clips: bit-equal with qk_clip off, which is another one.
  config.optim.tau = 100.0
  config.optim.qk_alpha = 0.5  # the queries' share of the rescaling
  # Updates with a logit above this are counted, whatever qk_clip is; after 10
  # in a row a run has exploded.
  config.optim.monitor_tau = 100.0

  config.warm_start = ml_collections.ConfigDict()
  config.warm_start.num_steps = 55  # supervised; 0 starts from scratch
  config.warm_start.batch_size = 64  # prompts with their answers
  config.warm_start.optimizer = 'adam'  # adam | muon on the hidden matrices
  config.warm_start.learning_rate = 3e-3  # Adam's, linear decay to 0
  # Muon's, alike. After 55 steps on sorting it is as far as Adam (held-out
  # reward .51 and .53 over 8 seeds), after 70 further (.76 and .64).
  config.warm_start.muon_learning_rate = 0.01
  # Ends it once responses that it samples have this share of right tokens, in
  # [0, 1]; 0 = off. num_steps is then the most that it takes.
  config.warm_start.stop_reward = 0.0
  config.warm_start.query_scale = 1.0  # query weights, so logits, times this
  config.warm_start.folder = ''  # cache; '' is warm_start/ in the run folder

  config.eval = ml_collections.ConfigDict()
  config.eval.every = 20  # steps between held-out evaluations; step 0 always
  config.eval.num_prompts = 512  # held out by a hash of the prompt, greedy

  config.mechanism = ml_collections.ConfigDict()
  # Steps between comparisons of the means' gradients, and of the policy before
  # and after a QK-clip; the first and the last step always. 0 never makes them,
  # and the program of a step is much smaller.
  config.mechanism.every = 20

  # What a controller may decide while the run goes on, see control.py.
  config.control = ml_collections.ConfigDict()
  # module:function, module:Class or file.py:name, from the record of a step to
  # a dict of decisions; '' is none.
  config.control.function = ''
  config.control.timeout = 60.0  # seconds for one call
  config.control.every = 1  # steps between decisions
  config.control.may_stop = False  # whether it may end the run
  config.control.history = 10  # steps in arithmetic_history, at least 5
  config.control.agm_iterations = 5  # K of agm/arithmetic_iterates, 1 to 10
  # Bounds on what it may decide; what it asks beyond them is cut to them.
  config.control.learning_rate_low = 1e-5
  config.control.learning_rate_high = 5e-3
  config.control.epsilon_low = 0.01  # of loss.clip_eps_high
  config.control.epsilon_high = 0.5
  config.control.p_low = -2.0
  config.control.p_high = 2.0
  config.control.agm_iterations_low = 1
  config.control.agm_iterations_high = 10

  config.checkpoint = ml_collections.ConfigDict()
  # Steps; the last one always. Each is evaluated: it may become the best one.
  config.checkpoint.every = 50
  config.checkpoint.keep = 2  # newest ones kept, beside the best one
  return config


def validate(config) -> None:
  """Raises ConfigError for the first value that can't run.

  Args:
    config: what a file in configs/ returned, with its overrides applied.

  Raises:
    ConfigError: an unknown or missing key, a wrong type, or a value outside
      its range; the message names the key, the value and what is allowed.
  """
  _check_keys(config, default_config(), '')
  for key, is_allowed, allowed in rules.RULES:
    value = lookup(config, key)
    # Traced values are float32: what rounds to 0 or 1 there is not allowed.
    used = float(np.float32(value)) if isinstance(value, float) else value
    if not is_allowed(used):
      raise ConfigError(f'config.{key} = {value!r}: must be {allowed}')
  _check_unused(config)
  for keys, is_allowed, allowed in rules.JOINT_RULES:
    if not is_allowed(config):
      given = (f'config.{key} = {lookup(config, key)!r}' for key in keys)
      raise ConfigError(f'{", ".join(given)}: {allowed}')


def _check_unused(config):
  """What a choice has no use for keeps its default: it would do nothing."""
  default = default_config()
  for key, choice in rules.unused(config, default).items():
    value, unset = lookup(config, key), lookup(default, key)
    if value != unset:
      raise ConfigError(
        f'config.{key} = {value!r}: must be {unset!r} with config.{choice} = '
        f'{lookup(config, choice)!r}, which has no use for it'
      )


def lookup(config, key: str):
  """The value or section of a dotted key; '' is the whole configuration.

  Raises:
    ConfigError: there is no such key; names the nearest.
  """
  path = key.split('.') if key else []
  for depth, part in enumerate(path):
    if not isinstance(config, ml_collections.ConfigDict) or part not in config:
      raise _unknown_key('.'.join(path[: depth + 1]), config, key)
    config = config[part]
  return config


def flat(tree: Mapping, prefix: str = '') -> dict:
  """Nested mappings as one dict with dotted keys."""
  result: dict = {}
  for key, value in tree.items():
    name = f'{prefix}{key}'
    is_section = isinstance(value, Mapping)
    result |= flat(value, f'{name}.') if is_section else {name: value}
  return result


def _check_keys(config, reference, prefix):
  """Same keys and same types as the reference, section by section."""
  for key in config:
    if key not in reference:
      raise _unknown_key(f'{prefix}{key}', reference, f'{prefix}{key}')
  for key, default in reference.items():
    if key not in config:
      raise ConfigError(
        f'config.{prefix}{key}: missing key; start from '
        'hmpo_jax.config.default_config()'
      )
    value = config[key]
    if isinstance(default, ml_collections.ConfigDict):
      if not isinstance(value, ml_collections.ConfigDict):
        raise ConfigError(
          f'config.{prefix}{key} = {value!r}: must be a section of keys'
        )
      _check_keys(value, default, f'{prefix}{key}.')
    elif not _has_type(value, type(default)):
      raise ConfigError(
        f'config.{prefix}{key} = {value!r}: must be '
        f'{type(default).__name__}, is {type(value).__name__}'
      )
    elif isinstance(default, float) and _FLOAT32_MAX < abs(value) < math.inf:
      raise ConfigError(
        f'config.{prefix}{key} = {value!r}: must be inf or '
        f'within float32, +-{_FLOAT32_MAX:.1e}'
      )
    elif isinstance(default, int) and abs(value) >= 2**31:
      raise ConfigError(
        f'config.{prefix}{key} = {value!r}: must be within int32, +-2**31'
      )


def _unknown_key(key, known, whole):
  """The error for a dotted key that its section, `known`, doesn't hold.

  It is the beginning of the `whole` key that was asked for.
  """
  section = key.rpartition('.')[0]
  names = list(known) if isinstance(known, ml_collections.ConfigDict) else []
  near = _nearest(key, names, whole)
  if not names:
    hint = f'config.{section} is a value, not a section'
  elif near:
    hint = f'did you mean {" or ".join(near)}?'
  else:
    hint = f'known keys here: {", ".join(sorted(names))}'
  return ConfigError(f'config.{key}: unknown key; {hint}')


def _nearest(key, names, whole):
  """Keys that hold the name or have it in another section, or one like it."""
  section, dot, name = key.rpartition('.')
  last = lambda other: other.rpartition('.')[2]
  keys = list(flat(default_config().to_dict()))
  alike = lambda other: difflib.SequenceMatcher(None, whole, other).ratio()
  # Of a section that is unknown, all of the key says more.
  is_short = len(name) < 3 or key != whole
  holding = [other for other in names if name in other and not is_short]
  close = difflib.get_close_matches(name, names, n=1)
  like = difflib.get_close_matches(last(whole), map(last, keys), n=1)
  same = [other for other in keys if last(other) == last(whole)]
  same.sort(key=lambda other: (other.count('.'), -alike(other)))
  here = holding if same else close
  return [f'{section}{dot}{other}' for other in here] + same or [
    other for other in keys if last(other) in like
  ]


def _has_type(value, wanted):
  if isinstance(value, bool) or wanted is bool:
    return isinstance(value, bool) and wanted is bool
  return isinstance(value, (int, float) if wanted is float else wanted)

"""The keys of what is sampled: the task, its reward, the model, the rollout."""

import math

from hmpo_jax.config.key_rows import row
from hmpo_jax.kernels import advantages
from hmpo_jax.kernels import kl
from hmpo_jax.ops import narrow

RUN = row.section(
  'The run as a whole.',
  seed=row.loop(
    0,
    row.Range(lambda x: 0 <= x < 2**31, 'from 0 to 2**31 - 1'),
    'decides parameters, prompts and sampling',
  ),
  num_steps=row.loop(
    300, row.at_least(1), 'steps: rollouts, each with all its updates'
  ),
)

TASK = row.section(
  'What the policy is asked. `prompts`, `vocab_size`, `pad`, `stop` and '
  '`response_len` are those of a file, and of no other task.',
  name=row.static(
    'sort', row.one_of('sort', 'addition', 'mapped_copy', 'file'), 'which task'
  ),
  num_digits=row.static(
    8, row.from_to(2, 1024), 'digits of a prompt, or of each summand'
  ),
  prompts=row.static(
    '', row.FILE, 'prompts and answers, see `tasks/prompt_file.py`'
  ),
  vocab_size=row.static(
    0, row.at_least(0), 'V, number of tokens: 0 to that less 1'
  ),
  pad=row.static(0, row.at_least(0), 'token outside prompt and response'),
  stop=row.static(
    1,
    row.Range(lambda x: x >= -1, 'at least 0 (-1 = none)'),
    'token that ends a response; without one all have full length',
  ),
  response_len=row.static(
    0, row.at_least(0), 'T, tokens after which a response is cut'
  ),
)

REWARD = row.section(
  'What a response is paid.',
  kind=row.traced(
    'share',
    row.one_of('share', 'exact'),
    "the share of the answer's tokens that stand at their place, or 1 where the "
    'response is the answer and otherwise 0',
  ),
  function=row.loop(
    '', row.FUNCTION, 'called on the host, judges in place of that'
  ),
  timeout=row.loop(
    60.0, row.SECONDS, 'seconds that one call of the function may take'
  ),
  kl_estimator=row.static(
    'none',
    row.one_of('none', *kl.REWARD_ESTIMATORS),
    "estimator of a response's KL to the warm start, in nats",
  ),
  kl_weight=row.traced(
    0.0,
    row.finite_at_least(0),
    'weight of that KL, which is subtracted from the reward',
  ),
  exclude_nonfinite=row.traced(
    False,
    row.FLAG,
    'leave responses whose reward is not finite out of their groups; '
    'otherwise the updates that see one of their groups are skipped',
  ),
)

MODEL = row.section(
  'The transformer.',
  num_layers=row.static(2, row.at_least(1), 'N_l, layers'),
  embed_dim=row.static(64, row.at_least(1), 'D, width'),
  num_heads=row.static(4, row.at_least(1), 'H, query heads'),
  num_kv_heads=row.static(
    2, row.at_least(1), 'K, key and value heads; divides `num_heads`'
  ),
  head_dim=row.static(
    16,
    row.Range(lambda x: x >= 2 and x % 2 == 0, 'even, at least 2'),
    'Dh, width of a head; even for the rotary embedding',
  ),
  mlp_dim=row.static(
    192, row.at_least(1), 'F, width of the feed-forward layer'
  ),
  rope_theta=row.static(
    10000.0, row.POSITIVE, 'base of the rotary frequencies'
  ),
  norm_eps=row.static(
    1e-6, row.POSITIVE, 'added to the mean square in RMSNorm'
  ),
  qk_bias=row.static(
    False, row.FLAG, 'biases on the query and key projections'
  ),
  qk_norm=row.static(
    False, row.FLAG, 'RMSNorm on the queries and keys of each head'
  ),
  tie_embeddings=row.static(True, row.FLAG, 'the output head is the embedding'),
  softcap=row.static(
    math.inf,
    row.Range(lambda x: x >= 2.0**-20, 'at least 2**-20 (inf = off)'),
    'c of c tanh(logits / c), on the logits of the next token',
  ),
  dtype=row.static(
    'float32',
    row.one_of('float32', 'bfloat16'),
    'dtype of products and hidden states; parameters, norms, softmax, '
    'log-probabilities and losses are float32 in any case',
  ),
  logits_dtype=row.static(
    'float32',
    row.one_of(*narrow.DTYPES),
    'dtype to which attention logits are rounded before their softmax, as in '
    'a narrow kernel; beyond 65504 float16 is infinite',
  ),
  attention_entropy=row.static(
    False, row.FLAG, 'record the attention entropy of each head of each layer'
  ),
  remat=row.static(
    'light',
    row.one_of('none', 'light', 'dots', 'layer'),
    'what the backward pass recomputes: nothing; norms, rotations and the '
    'inside of feed-forward layers (fastest on CPU, with less memory); all '
    'but matrix products; each layer (least memory)',
  ),
)

ROLLOUT = row.section(
  'The responses of one step.',
  num_prompts=row.static(16, row.at_least(1), 'N, prompts per step'),
  group_size=row.static(8, row.at_least(2), 'G, responses to each prompt'),
  temperature=row.traced(
    1.0,
    row.finite_at_least(2.0**-20),
    'divides the logits, in the sampler and in the loss alike',
  ),
  top_k=row.static(
    0,
    row.at_least(0),
    'draw from the k likeliest tokens; 0 is all, 1 greedy. Log-probabilities '
    'stay those of all tokens: what truncation makes of ratios is a bias, see '
    '`rollout/kept_mass`',
  ),
  top_p=row.static(
    1.0,
    row.Range(lambda x: 0 < x <= 1, 'above 0 and at most 1'),
    'and of these from the likeliest of this mass; 1 is all',
  ),
  bucket=row.static(
    0,
    row.at_least(0),
    'tokens by which the cache of keys and values grows, which changes no '
    'response; each of the sizes up to a whole response is a loop that is '
    'compiled. 0 is a quarter of the response, but at least 16',
  ),
  staleness=row.static(
    0, row.at_least(0), "steps by which the sampler's policy lags"
  ),
  old_logprobs=row.static(
    'recompute',
    row.one_of('recompute', 'sampler'),
    'source of the old log-probabilities: the training forward pass, or the '
    'sampler, which saves that pass; then the first ratios are 1 only up to '
    'rounding',
  ),
  mismatch_frac=row.traced(
    0.0,
    row.UNIT,
    'share of the tokens, drawn anew in each step, whose log-probability the '
    'sampler misstates by `mismatch_size` up or down, like a sampler that '
    'routes tokens to other experts than the trainer; with '
    '`old_logprobs=sampler` alone',
  ),
  mismatch_size=row.traced(1.0, row.POSITIVE, 'nats by which it does'),
  mask_truncated=row.traced(
    False, row.FLAG, 'leave out responses without a stop token'
  ),
)

ADVANTAGE = row.section(
  'From rewards to advantages, within each group.',
  baseline=row.static(
    'mean',
    row.one_of(*advantages.BASELINES),
    'what is subtracted: the mean of the group, that of the others, or nothing',
  ),
  scale=row.static(
    'std',
    row.one_of('std', 'none'),
    'what divides: the standard deviation of the group, or nothing',
  ),
  ddof=row.static(
    1, row.one_of(0, 1), 'degrees of freedom of the standard deviation'
  ),
  eps=row.static(
    1e-6,
    row.finite_at_least(0),
    'added to the standard deviation, in units of reward',
  ),
  permute=row.traced(
    False, row.FLAG, 'control: advantages are shuffled within their group'
  ),
)

"""A step of google-tunix's GRPOLearner on one CPU device; see `peer_loop`.

The loss is gspo-token, whose values and gradients are those of GSPO, the policy
Llama 3's class, the sampler tunix's own. It is told of an end that no token is,
so that every response has its full length. While each rollout is used once,
tunix takes the policy itself for the old one, without another forward pass. Its
loss leaves out responses' tokens that are the padding's, one of the vocabulary.
"""

import importlib
import importlib.metadata
from typing import Any

_NO_STEP = 1_000_000


def describe() -> dict:
  """Versions."""
  # The learner itself, as the package is there before what it needs is.
  importlib.import_module('tunix.rl.grpo.grpo_learner')
  names = 'google-tunix', 'jax', 'flax', 'optax'
  return {name: importlib.metadata.version(name) for name in names}


def train(workload: Any, steps: Any) -> None:
  """Trains until there are no more lines.

  Args:
    workload: fields of `Workload` and `Recipe`.
    steps: `peer_loop.Steps`.
  """
  jax = importlib.import_module('jax')
  learner_lib = importlib.import_module('tunix.rl.grpo.grpo_learner')
  np = importlib.import_module('numpy')
  # Its arrays are sharded by these names, and not explicitly, as those of
  # jax.make_mesh would have to be.
  devices = np.array(jax.devices()[:1]).reshape(1, 1)
  mesh = jax.sharding.Mesh(devices, ('fsdp', 'tp'))
  with mesh:
    model = _model(workload)
    cluster = _cluster(workload, steps, model, mesh)
    cluster.generate = steps.rollout(cluster.generate, _lengths(steps))
    learner = learner_lib.GRPOLearner(
      rl_cluster=cluster,
      algo_config=learner_lib.GRPOConfig(
        loss_algo='gspo-token',
        epsilon=workload.clip_epsilon,
        beta=0.0,
        num_generations=workload.group_size,
        num_iterations=1,
      ),
      reward_fns=lambda completions, **_: steps.rewards(completions),
    )
    learner.train(_batches(workload, steps, cluster))


class _Tokenizer:
  """Each word is a token."""

  def __init__(self, steps):
    self._steps = steps

  def encode(self, text, **_):
    """Numbers of the words."""
    return [int(word[1:]) for word in text.split()]

  def decode(self, ids, **_):
    """Words of the numbers."""
    return ' '.join(map(self._steps.word, ids))

  def bos_id(self):
    """Comes before every prompt."""
    return self._steps.bos

  def eos_id(self):
    """Would end a response."""
    return self._steps.eos

  def pad_id(self):
    """Stands for no token."""
    return self._steps.pad


def _batches(workload, steps, cluster):
  """A batch of prompts for each line; when a step is over, it goes on."""
  np = importlib.import_module('numpy')
  jax = importlib.import_module('jax')
  nnx = importlib.import_module('flax.nnx')

  def weights():
    # The cluster trains a copy of the model that it is given.
    model = cluster.actor_trainer.model
    return jax.tree.leaves(nnx.state(model, nnx.Param))

  # The sampler puts one token before each.
  prompts = steps.prompts(workload.num_prompts, workload.prompt_len - 1)
  for _ in steps.serve(sum(weight.size for weight in weights())):
    yield {'prompts': np.array(prompts)}
    jax.block_until_ready(weights())


def _lengths(steps):
  """Tokens of prompts and responses of what the cluster returns."""

  def lengths(output):
    prompts, responses = output.left_padded_prompt_tokens, output.tokens
    for prompt, response in zip(prompts, responses, strict=True):
      yield int((prompt != steps.pad).sum()), len(response)

  return lengths


def _model(workload):
  nnx = importlib.import_module('flax.nnx')
  llama = importlib.import_module('tunix.models.llama3.model')
  config = llama.ModelConfig(
    num_layers=workload.num_layers,
    vocab_size=workload.vocab_size,
    embed_dim=workload.embed_dim,
    hidden_dim=workload.mlp_dim,
    num_heads=workload.num_heads,
    head_dim=workload.head_dim,
    num_kv_heads=workload.num_kv_heads or workload.num_heads,
    rope_theta=int(workload.rope_base),
    norm_eps=workload.norm_epsilon,
    weight_tying=True,
  )
  return llama.Llama3(config, rngs=nnx.Rngs(params=0))


def _cluster(workload, steps, model, mesh):
  cluster = importlib.import_module('tunix.rl.rl_cluster')
  rollout = importlib.import_module('tunix.rl.rollout.base_rollout')
  roles = cluster.Role.ACTOR, cluster.Role.REFERENCE, cluster.Role.ROLLOUT
  config = cluster.ClusterConfig(
    role_to_mesh=dict.fromkeys(roles, mesh),
    rollout_engine='vanilla',
    training_config=cluster.RLTrainingConfig(
      actor_optimizer=_optimizer(workload),
      eval_every_n_steps=_NO_STEP,
      max_steps=_NO_STEP,
      mini_batch_size=workload.num_prompts,
      train_micro_batch_size=workload.num_prompts,
      rollout_micro_batch_size=workload.num_prompts,
      compute_logps_micro_batch_size=workload.num_prompts,
    ),
    rollout_config=rollout.RolloutConfig(
      max_tokens_to_generate=workload.response_len,
      max_prompt_length=workload.prompt_len,
      kv_cache_size=workload.prompt_len + workload.response_len,
      temperature=workload.temperature,
      top_p=1.0,
      eos_tokens=[workload.vocab_size],
    ),
  )  # no token is
  return cluster.RLCluster(
    actor=model,
    reference=model,
    tokenizer=_Tokenizer(steps),
    cluster_config=config,
  )


def _optimizer(workload):
  optax = importlib.import_module('optax')
  return optax.chain(
    optax.clip_by_global_norm(workload.max_grad_norm),
    optax.adamw(workload.learning_rate, weight_decay=workload.weight_decay),
  )

"""Workloads that are the same for this project and for those beside it."""

from typing import NamedTuple


class Workload(NamedTuple):
  """A whole step: policy and batch; every response has its full length.

  The policy is as Llama's: rotary positions, RMS norms, a gated MLP, no biases,
  and one matrix for embedding and output.
  """

  name: str
  num_layers: int
  embed_dim: int
  num_heads: int  # of queries
  head_dim: int
  mlp_dim: int
  vocab_size: int
  num_prompts: int
  group_size: int  # responses to a prompt
  prompt_len: int  # tokens
  response_len: int  # tokens
  num_kv_heads: int | None = None  # of keys and values; None: as of queries
  dtype: str = 'float32'  # of products and activations
  # What a large policy needs to fit into memory: see config.model.remat and
  # config.train.num_microbatches.
  remat: str = 'light'
  num_microbatches: int = 1

  @property
  def key_heads(self) -> int:
    """Heads of keys and values."""
    return self.num_kv_heads or self.num_heads

  @property
  def batch(self) -> int:
    """Sequences."""
    return self.num_prompts * self.group_size

  @property
  def layer_matrices(self) -> int:
    """Weights of the matrices of all layers."""
    heads = self.num_heads + self.key_heads
    attention = 2 * self.embed_dim * heads * self.head_dim
    gated = 3 * self.embed_dim * self.mlp_dim  # gate, up and down
    return self.num_layers * (attention + gated)

  @property
  def num_params(self) -> int:
    """Weights of the policy, the output matrix counted once."""
    norms = (2 * self.num_layers + 1) * self.embed_dim
    return self.layer_matrices + self.vocab_size * self.embed_dim + norms


class Recipe(NamedTuple):
  """What a step does: a GSPO update for a rollout, without KL and old policy.

  The ratio is that of the sequence, as in "Group Sequence Policy Optimization"
  by Zheng et al., https://arxiv.org/abs/2507.18071; the optimizer is AdamW.
  """

  clip_epsilon: float = 0.2  # below and above 1
  learning_rate: float = 3e-4
  weight_decay: float = 0.01
  max_grad_norm: float = 1.0
  temperature: float = 1.0
  rope_base: float = 10_000.0
  norm_epsilon: float = 1e-6
  reward_token: int = 7  # the reward is its share of the response


RECIPE = Recipe()

_SMALL = Workload(
  name='W-small',
  num_layers=4,
  embed_dim=128,
  num_heads=4,
  head_dim=32,
  mlp_dim=512,
  vocab_size=64,
  num_prompts=16,
  group_size=8,
  prompt_len=16,
  response_len=64,
)

# For accelerators alone.
LARGE = Workload(
  name='W-large',
  num_layers=28,
  embed_dim=1024,
  num_heads=16,
  head_dim=128,
  mlp_dim=3072,
  vocab_size=151_936,
  num_prompts=8,
  group_size=8,
  prompt_len=16,
  response_len=1024,
  num_kv_heads=8,
  dtype='bfloat16',
  remat='layer',
  num_microbatches=8,
)

WORKLOADS = {
  workload.name: workload
  for workload in (
    _SMALL,
    _SMALL._replace(name='W-long', num_prompts=4, response_len=512),
    _SMALL._replace(
      name='W-runs',
      num_layers=2,
      embed_dim=64,
      head_dim=16,
      mlp_dim=256,
      num_prompts=4,
    ),
    LARGE,
  )
}


def named(name: str) -> Workload:
  """The workload of a name; ValueError tells the names that there are."""
  if name not in WORKLOADS:
    raise ValueError(f'{name}: must be one of {", ".join(WORKLOADS)}')
  return WORKLOADS[name]

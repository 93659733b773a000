"""Workloads that are the same for this project and for those beside it."""

from typing import NamedTuple


class Workload(NamedTuple):
  """A whole step: policy and batch; every response has its full length.

  The policy is as Llama's: rotary positions, RMS norms, a gated MLP, as many
  heads of keys and values as of queries, no biases, float32, and one matrix for
  embedding and output.
  """
  name: str
  num_layers: int
  embed_dim: int
  num_heads: int  # of queries, and as many of keys and values
  head_dim: int
  mlp_dim: int
  vocab_size: int
  num_prompts: int
  group_size: int  # responses to a prompt
  prompt_len: int  # tokens
  response_len: int  # tokens

  @property
  def num_params(self) -> int:
    """Weights of the policy, the output matrix counted once."""
    attention = 4 * self.embed_dim * self.num_heads * self.head_dim
    layer = (
        attention + 3 * self.embed_dim * self.mlp_dim  # gate, up and down
        + 2 * self.embed_dim)  # two norms
    return (self.num_layers * layer + self.vocab_size * self.embed_dim +
            self.embed_dim)  # the last norm


class Recipe(NamedTuple):
  """What a step does: a GSPO update for a rollout, without KL and old policy.

  The ratio is that of the sequence, as in "Group Sequence Policy Optimization"
  by Zheng et al., https://arxiv.org/abs/2507.18071; the optimizer is AdamW.
  """
  clip_epsilon: float = 0.2  # below and above 1
  learning_rate: float = 3e-4
  weight_decay: float = 0.01
  max_grad_norm: float = 1.
  temperature: float = 1.
  rope_base: float = 10_000.
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
    response_len=64)

WORKLOADS = {
    workload.name: workload for workload in (
        _SMALL,
        _SMALL._replace(name='W-long', num_prompts=4, response_len=512),
        _SMALL._replace(
            name='W-runs',
            num_layers=2,
            embed_dim=64,
            head_dim=16,
            mlp_dim=256,
            num_prompts=4),
    )
}

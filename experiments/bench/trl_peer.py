"""A step of TRL's GRPOTrainer on the CPU; see `peer_loop`.

The ratio is that of the sequence. Rollouts use the cache of transformers, whose
policy ends no response early, as its last token must not come before that.
While each rollout is used once, TRL takes the policy itself for the old one,
without another forward pass. Activations are kept, which isn't its default but
is faster.
"""

from collections.abc import Iterator
import importlib
import tempfile
from typing import Any

_NUM_BATCHES = 64  # of prompts, before they come again


def describe() -> dict:
  """Versions and the number of threads."""
  torch = importlib.import_module('torch')
  # The trainer itself, as the package is there before what it needs is.
  importlib.import_module('trl.trainer.grpo_trainer')
  names = 'trl', 'transformers', 'torch'
  versions = {name: importlib.import_module(name).__version__ for name in names}
  return versions | {'threads': torch.get_num_threads()}


def train(workload: Any, steps: Any) -> None:
  """Trains until there are no more lines.

  Args:
    workload: fields of `Workload` and `Recipe`.
    steps: `peer_loop.Steps`.
  """
  trl = importlib.import_module('trl')
  datasets = importlib.import_module('datasets')
  importlib.import_module('torch').manual_seed(0)
  model = _model(workload, steps)
  model.generate = steps.rollout(
    model.generate,
    lambda tokens: lengths(
      tokens.tolist(), workload.prompt_len, steps.pad, steps.eos
    ),
  )
  prompts = steps.prompts(
    _NUM_BATCHES * workload.num_prompts, workload.prompt_len
  )
  with tempfile.TemporaryDirectory() as folder:
    trainer = trl.GRPOTrainer(
      model=model,
      reward_funcs=lambda completions, **_: steps.rewards(completions),
      args=_config(workload, folder),
      train_dataset=datasets.Dataset.from_dict({'prompt': prompts}),
      processing_class=_tokenizer(workload, steps),
    )
    num_params = sum(weight.numel() for weight in model.parameters())
    requests, step = steps.serve(num_params), trainer.training_step

    def training_step(*args, **kwargs):
      """From one to the next is all that the trainer does for a step."""
      if next(requests, 'no more lines') is not None:
        raise SystemExit
      return step(*args, **kwargs)

    trainer.training_step = training_step
    trainer.train()


def lengths(
  rows: list[list[int]], prompt_len: int, pad: int, eos: int
) -> Iterator[tuple[int, int]]:
  """Tokens of prompt and response.

  Args:
    rows: prompts of `prompt_len` tokens, padded, and what follows them.
    prompt_len: where the responses begin.
    pad: stands for no token in a prompt.
    eos: ends a response; not counted.

  Yields:
    For each row the length of its prompt and that of its response.
  """
  for row in rows:
    prompt, response = row[:prompt_len], row[prompt_len:] + [eos]
    yield len(prompt) - prompt.count(pad), response.index(eos)


def _config(workload, folder):
  trl = importlib.import_module('trl')
  return trl.GRPOConfig(
    output_dir=folder,
    importance_sampling_level='sequence',
    loss_type='grpo',
    epsilon=workload.clip_epsilon,
    beta=0.0,
    num_iterations=1,
    num_generations=workload.group_size,
    per_device_train_batch_size=workload.num_prompts * workload.group_size,
    gradient_accumulation_steps=1,
    steps_per_generation=1,
    max_completion_length=workload.response_len,
    generation_kwargs={'min_new_tokens': workload.response_len},
    temperature=workload.temperature,
    learning_rate=workload.learning_rate,
    weight_decay=workload.weight_decay,
    max_grad_norm=workload.max_grad_norm,
    lr_scheduler_type='constant',
    max_steps=1_000_000,
    use_cpu=True,
    bf16=False,
    gradient_checkpointing=False,
    dataloader_pin_memory=False,
    report_to=[],
    logging_strategy='no',
    save_strategy='no',
    disable_tqdm=True,
  )


def _model(workload, steps):
  """Random weights, as transformers draws them."""
  transformers = importlib.import_module('transformers')
  config = transformers.LlamaConfig(
    vocab_size=workload.vocab_size,
    hidden_size=workload.embed_dim,
    intermediate_size=workload.mlp_dim,
    num_hidden_layers=workload.num_layers,
    num_attention_heads=workload.num_heads,
    num_key_value_heads=workload.num_kv_heads or workload.num_heads,
    head_dim=workload.head_dim,
    max_position_embeddings=workload.prompt_len + workload.response_len,
    rope_theta=workload.rope_base,
    rms_norm_eps=workload.norm_epsilon,
    tie_word_embeddings=True,
    pad_token_id=steps.pad,
    bos_token_id=steps.bos,
    eos_token_id=steps.eos,
  )
  return transformers.LlamaForCausalLM(config).float()


def _tokenizer(workload, steps):
  """Each word is a token."""
  transformers = importlib.import_module('transformers')
  tokenizers = importlib.import_module('tokenizers')
  words = {steps.word(token): token for token in range(workload.vocab_size)}
  unknown = steps.word(steps.unknown)
  tokenizer = tokenizers.Tokenizer(
    tokenizers.models.WordLevel(words, unk_token=unknown)
  )
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizer,
    padding_side='left',
    unk_token=unknown,
    pad_token=steps.word(steps.pad),
    bos_token=steps.word(steps.bos),
    eos_token=steps.word(steps.eos),
  )

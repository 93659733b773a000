"""A task whose prompts stand in a file, one JSON object a line.

  {"prompt": [5, 7, 2], "answer": [9, 1]}

Tokens are integers below the vocabulary's size. The answer, which ends with the
stop token (if there is none, it has the length of a response), may be missing
where a reward function judges the responses and no warm start is asked for.
"""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp

from hmpo_jax import config as config_lib
from hmpo_jax.tasks import task as task_lib


@functools.lru_cache
def load(file: str, vocab_size: int, pad: int, stop: int,
         response_len: int) -> task_lib.Task:
  """Reads a file of prompts, once in a process.

  Args:
    file: its path.
    vocab_size: V, tokens are from 0 to V - 1.
    pad: token outside prompt and response, which no line may hold.
    stop: token that ends a response, -1 for none.
    response_len: T, tokens after which a response is cut.

  Returns:
    A task, with answers if every line has one.

  Raises:
    ConfigError: a file that can't be read or is empty, a line of another
      format (named by its number), or no prompt that can be trained.
  """
  lines = _read(file)
  check = functools.partial(
      _tokens,
      vocab_size=vocab_size,
      pad=pad,
      where=f'config.task.prompts = '
      f'{file!r}: line')
  prompts = [check(number, line, 'prompt') for number, line in lines]
  answers = [
      check(number, line, 'answer')
      for number, line in lines
      if 'answer' in line
  ]
  if len({tuple(prompt) for prompt in prompts}) < len(prompts):
    raise _error(file, 'must not hold a prompt twice')
  if stop < 0 and any(len(a) != response_len for a in answers):
    raise _error(
        file, 'every answer must have config.task.response_len = '
        f'{response_len} tokens, as no stop token ends a response')
  if stop >= 0 and any(len(a) > response_len or a[-1] != stop for a in answers):
    raise _error(
        file, f'every answer must end with the stop token {stop} and have at '
        f'most config.task.response_len = {response_len} tokens')
  prompt_len = max(map(len, prompts))
  pad_to = lambda row, width: [pad] * (width - len(row))
  table = jnp.array([pad_to(p, prompt_len) + p for p in prompts], jnp.int32)
  if bool(jnp.all(jax.vmap(task_lib.is_held_out)(table))):
    raise _error(file, 'all its prompts fall into the held-out sixteenth')
  has_answers = len(answers) == len(prompts)
  right = jnp.array([
      a + pad_to(a, response_len)
      for a in (answers if has_answers else [[]] * len(prompts))
  ], jnp.int32)
  draw = lambda key: table[jax.random.randint(key, (), 0, len(prompts))]
  answer = lambda prompt: right[jnp.argmax(jnp.all(table == prompt, axis=1))]
  return task_lib.Task('file', vocab_size, pad, stop, prompt_len, response_len,
                       draw, answer, has_answers)


def _read(file):
  """Pairs of line number and JSON object."""
  try:
    text = pathlib.Path(file).read_text(encoding='utf-8')
  except (OSError, ValueError) as error:
    raise _error(file, f'must be a readable text file ({error})') from error
  lines = []
  for number, line in enumerate(text.split('\n'), 1):
    if not line.strip():
      continue
    try:
      content = json.loads(line)
    except (ValueError, RecursionError) as error:
      raise _error(file, f'line {number} is no JSON ({error})') from error
    if not isinstance(content, dict) or 'prompt' not in content:
      raise _error(file, f'line {number} must be an object with a "prompt"')
    lines.append((number, content))
  if not lines:
    raise _error(file, 'is empty; it must hold a JSON object in every line')
  return lines


def _tokens(number, line, name, *, vocab_size, pad, where):
  """The token list of a line, checked."""
  tokens = line[name]
  is_token = lambda t: (
      isinstance(t, int) and not isinstance(t, bool) and 0 <= t < vocab_size and
      t != pad)
  if not isinstance(tokens, list) or not tokens or not all(
      map(is_token, tokens)):
    raise config_lib.ConfigError(
        f'{where} {number}: "{name}" must be a list of integers from 0 to '
        f'{vocab_size - 1} without the padding {pad}, got {tokens!r:.60}')
  return tokens


def _error(file, text):
  return config_lib.ConfigError(f'config.task.prompts = {file!r}: {text}')

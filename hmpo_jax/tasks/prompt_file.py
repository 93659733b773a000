"""A task whose prompts stand in a file, one JSON object a line.

  {"prompt": [5, 7, 2], "answer": [9, 1]}

Tokens are integers below the vocabulary's size. The answer, which ends with the
stop token (if there is none, it has the length of a response), may be missing
where a reward function judges the responses and no warm start is asked for.
"""

from collections.abc import Mapping
import difflib
import functools
import json
import pathlib

import jax
import jax.numpy as jnp

from hmpo_jax import config as config_lib
from hmpo_jax.config import lines as lines_lib
from hmpo_jax.tasks import task as task_lib


@functools.lru_cache
def load(
  file: str, vocab_size: int, pad: int, stop: int, response_len: int
) -> task_lib.Task:
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
  check = functools.partial(_tokens, file, vocab_size=vocab_size, pad=pad)
  prompts = [check(number, line, 'prompt') for number, line in lines]
  numbers: dict = {}  # of the lines, by their prompts
  for (number, _), prompt in zip(lines, map(tuple, prompts)):
    if numbers.setdefault(prompt, number) != number:
      raise _error(
        file, f'line {number} holds the prompt of line {numbers[prompt]} again'
      )
  answers = []
  for number, line in lines:
    if 'answer' in line:
      answers.append(check(number, line, 'answer'))
      fault = _end_fault(answers[-1], stop, response_len)
      if fault:
        raise _error(file, f'line {number}: "answer" {fault}')
  prompt_len = max(map(len, prompts))
  pad_to = lambda row, width: [pad] * (width - len(row))
  table = jnp.array([pad_to(p, prompt_len) + p for p in prompts], jnp.int32)
  if bool(jnp.all(jax.vmap(task_lib.is_held_out)(table))):
    raise _error(file, 'all its prompts fall into the held-out sixteenth')
  has_answers = len(answers) == len(prompts)
  right = jnp.array(
    [
      a + pad_to(a, response_len)
      for a in (answers if has_answers else [[]] * len(prompts))
    ],
    jnp.int32,
  )
  draw = lambda key: table[jax.random.randint(key, (), 0, len(prompts))]
  answer = lambda prompt: right[jnp.argmax(jnp.all(table == prompt, axis=1))]
  return task_lib.Task(
    'file',
    vocab_size,
    pad,
    stop,
    prompt_len,
    response_len,
    draw,
    answer,
    has_answers,
  )


def unanswered(file: str) -> config_lib.ConfigError:
  """The error for a file of `load` in which an answer is missed."""
  number, line = next(
    (number, line) for number, line in _read(file) if 'answer' not in line
  )
  return _error(
    file,
    f'line {number} has no "answer"{_near(line, "answer")}: all must '
    'have one, unless config.reward.function is given and '
    'config.warm_start.num_steps is 0',
  )


def _read(file):
  """Pairs of line number and JSON object."""
  try:
    texts = lines_lib.read(pathlib.Path(file))
  except (OSError, ValueError) as error:
    raise _error(file, f'must be a readable text file ({error})') from error
  lines = []
  for number, line in enumerate(texts, 1):
    if not line.strip():
      continue
    try:
      content = json.loads(line)
    except (ValueError, RecursionError) as error:
      raise _error(file, f'line {number} is no JSON ({error})') from error
    if not isinstance(content, dict) or 'prompt' not in content:
      raise _error(
        file,
        f'line {number} must be an object with a "prompt"'
        f'{_near(content, "prompt")}',
      )
    lines.append((number, content))
  if not lines:
    raise _error(file, 'is empty; it must hold a JSON object in every line')
  return lines


def _near(content, name):
  """The key that stands for a missing one, if it is misspelt."""
  keys = list(content) if isinstance(content, Mapping) else []
  near = difflib.get_close_matches(name, keys, n=1)
  return f', but "{near[0]}"' if near else ''


def _end_fault(answer, stop, response_len):
  """What is wrong with the end of an answer; '' if nothing."""
  if stop < 0 and len(answer) != response_len:
    return (
      f'must have config.task.response_len = {response_len} tokens, as '
      f'no stop token ends a response, has {len(answer)}'
    )
  if stop >= 0 and (len(answer) > response_len or answer[-1] != stop):
    return (
      f'must end with the stop token {stop} and have at most '
      f'config.task.response_len = {response_len} tokens, got '
      f'{answer!r:.60}'
    )
  return ''


def _tokens(file, number, line, name, *, vocab_size, pad):
  """The token list of a line, checked."""
  tokens = line[name]
  is_token = lambda t: (
    isinstance(t, int)
    and not isinstance(t, bool)
    and 0 <= t < vocab_size
    and t != pad
  )
  if (
    not isinstance(tokens, list) or not tokens or not all(map(is_token, tokens))
  ):
    raise _error(
      file,
      f'line {number}: "{name}" must be a list of integers from 0 to '
      f'{vocab_size - 1} without the padding {pad}, got {tokens!r:.60}',
    )
  return tokens


def _error(file, text):
  return config_lib.ConfigError(f'config.task.prompts = {file!r}: {text}')

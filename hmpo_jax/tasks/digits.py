"""Tasks on sequences of digits, at any length, in pure JAX."""

import jax
import jax.numpy as jnp

from hmpo_jax.tasks import task

PAD, STOP, ZERO, PLUS, EQUALS = 0, 1, 2, 12, 13
NO_STOP = -1
VOCAB_SIZE = 14


def sort(num_digits: int) -> task.Task:
  """Sorts digits: 3 1 2 = gives 1 2 3 stop.

  Args:
    num_digits: how many, at least 2; a response has one token more.
  """

  def draw(key):
    digits = jax.random.randint(key, (num_digits,), 0, 10)
    return jnp.append(ZERO + digits, EQUALS).astype(jnp.int32)

  def answer(prompt):
    return jnp.append(jnp.sort(prompt[:num_digits]), STOP).astype(jnp.int32)

  return task.Task(
    'sort', VOCAB_SIZE, PAD, STOP, num_digits + 1, num_digits + 1, draw, answer
  )


def addition(num_digits: int) -> task.Task:
  """Adds two numbers: 1 7 + 0 5 = gives 2 2 stop, lowest digit first.

  The summands have `num_digits` digits, highest first, with leading zeros; the
  sum has none, so that its length depends on the carries.

  Args:
    num_digits: digits of each summand, at least 2; a response has at most two
      tokens more.
  """

  def draw(key):
    digits = ZERO + jax.random.randint(key, (2, num_digits), 0, 10)
    return jnp.concatenate(
      [digits[0], jnp.array([PLUS]), digits[1], jnp.array([EQUALS])]
    ).astype(jnp.int32)

  def answer(prompt):
    first = prompt[:num_digits][::-1] - ZERO
    second = prompt[num_digits + 1 : 2 * num_digits + 1][::-1] - ZERO

    def add(carry, pair):
      total = pair[0] + pair[1] + carry
      return total // 10, total % 10

    carry, digits = jax.lax.scan(add, jnp.int32(0), (first, second))
    digits = jnp.append(digits, carry)
    places = jnp.arange(num_digits + 2)
    length = jnp.maximum(jnp.max(jnp.where(digits > 0, places[:-1] + 1, 0)), 1)
    tokens = jnp.append(ZERO + digits, PAD)
    tokens = jnp.where(places < length, tokens, PAD)
    return jnp.where(places == length, STOP, tokens).astype(jnp.int32)

  return task.Task(
    'addition',
    VOCAB_SIZE,
    PAD,
    STOP,
    2 * num_digits + 2,
    num_digits + 2,
    draw,
    answer,
  )


def mapped_copy(num_digits: int) -> task.Task:
  """Replaces each digit by another: 3 1 2 gives 4 0 7, always the same one.

  Each token is judged by itself and depends on one token of the prompt, at any
  length, and no response that ignores the prompt earns more than chance, 0.1.
  No token ends a response.

  Args:
    num_digits: of the prompt and of the response, at least 2.
  """

  def draw(key):
    return ZERO + jax.random.randint(key, (num_digits,), 0, 10, jnp.int32)

  # 7 d + 3 modulo 10 reaches every digit and maps none to itself.
  answer = lambda prompt: ZERO + (7 * (prompt - ZERO) + 3) % 10

  return task.Task(
    'mapped_copy',
    VOCAB_SIZE,
    PAD,
    NO_STOP,
    num_digits,
    num_digits,
    draw,
    answer,
  )


TASKS = {'sort': sort, 'addition': addition, 'mapped_copy': mapped_copy}


def make(name: str, num_digits: int) -> task.Task:
  """Returns the task that `config.task` names.

  Raises:
    ValueError: unknown name.
  """
  if name not in TASKS:
    raise ValueError(f'task {name!r}: must be one of {", ".join(TASKS)}')
  return TASKS[name](num_digits)

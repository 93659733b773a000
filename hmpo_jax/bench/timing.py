"""Cases that take turns, and the rows of numbers they come to.

All cases of a group take turns in rounds, each in a random order, so that
whatever else the machine does hits them alike. Times are medians over rounds, a
ratio is the median of the ratios within rounds to the group's first case, and a
spread the interquartile range.
"""

from collections.abc import Callable, Iterable, Sequence
import re
import time
from typing import Any, NamedTuple

import jax
import numpy as np


class Options(NamedTuple):
  """What the flags ask of a suite."""
  shapes: Sequence[tuple[int, ...]]
  rounds: int
  config: Any  # of the train step
  variants: str = '.*'  # regular expression of those to time
  torch_python: str | None = None  # interpreter that has torch

  def wants(self, variant: str) -> bool:
    """Whether a variant is to be timed."""
    return re.fullmatch(self.variants, variant) is not None


class Row(NamedTuple):
  """One case of one group; a time is of one call."""
  shape: str  # what the group is about
  variant: str
  mode: str  # how the variant is run, such as what it returns
  rounds: int
  ms: float  # median over rounds
  ms_spread: float  # interquartile range
  ratio: float  # to the first case of the group, median over rounds
  ratio_spread: float
  gflops_per_s: float | None  # of the products that the case is known for
  # Tracing, lowering and compiling, or fetching from JAX's cache on disk.
  compile_s: float | None
  temporary_mb: float | None  # of the program, beside inputs and outputs
  output_mb: float | None


class Suite(NamedTuple):
  """What the command needs to know of a suite."""
  measure: Callable[[Options], list[Row]]
  variants: Callable[[], Iterable[str]]  # what Options.variants may match
  shapes: tuple[str, ...]  # by default, each as 64x1024
  rounds: int  # by default
  has_torch: bool = False  # times torch too, where there is one


class Program(NamedTuple):
  """A compiled function, and what compiling it took."""
  call: Callable
  compile_s: float
  memory: Any  # of jax's memory_analysis()


class Case(NamedTuple):
  """What is timed."""
  variant: str
  mode: str
  seconds: Callable[[int], float]  # of one call, the mean of so many
  program: Program | None = None  # where it is one
  flops: float | None = None  # of the products in one call


def compiled(function: Callable, *arguments: Any,
             donate: tuple[int, ...] = ()) -> Program:
  """Compiles a function for arguments like these.

  Args:
    function: pure, of arrays.
    *arguments: what it will be called with.
    donate: places of arguments whose buffers a call may use up.
  """
  start = time.perf_counter()
  program = jax.jit(function, donate_argnums=donate).lower(*arguments).compile()
  return Program(program,
                 time.perf_counter() - start, program.memory_analysis())


def wall_clock(call: Callable[[], Any]) -> Callable[[int], float]:
  """`Case.seconds` of a call that returns arrays."""

  def seconds(repeats):
    start = time.perf_counter()
    for _ in range(repeats):
      jax.block_until_ready(call())
    return (time.perf_counter() - start) / repeats

  return seconds


def timed(shape: str,
          cases: Sequence[Case],
          rounds: int,
          *,
          repeats: int = 1,
          fill_caches: bool = True) -> list[Row]:
  """Times cases that take turns; each runs once before.

  Args:
    shape: name of the group.
    cases: the first is what the others are held to.
    rounds: how often each has its turn.
    repeats: calls of one turn.
    fill_caches: whether a turn starts with a call that isn't timed. Calls of a
      tenth of a second hardly gain by it.
  """
  for case in cases:
    case.seconds(1)
  seconds = np.zeros((rounds, len(cases)))
  rng = np.random.default_rng(0)
  for of_round in seconds:
    for i in rng.permutation(len(cases)):
      if fill_caches:
        cases[i].seconds(1)
      of_round[i] = cases[i].seconds(repeats)
  ratios = seconds / seconds[:, :1]
  return [
      _row(shape, case, seconds[:, i], ratios[:, i])
      for i, case in enumerate(cases)
  ]


def _row(shape, case, seconds, ratios):
  low, middle, high = np.percentile([1e3 * seconds, ratios], [25, 50, 75], 1)
  spread = high - low
  return Row(
      shape=shape,
      variant=case.variant,
      mode=case.mode,
      rounds=len(seconds),
      ms=round(middle[0], 4),
      ms_spread=round(spread[0], 4),
      ratio=round(middle[1], 5),
      ratio_spread=round(spread[1], 5),
      gflops_per_s=case.flops and round(case.flops / middle[0] / 1e6, 3),
      compile_s=case.program and round(case.program.compile_s, 3),
      temporary_mb=_megabytes(case.program, 'temp'),
      output_mb=_megabytes(case.program, 'output'))


def _megabytes(program, kind):
  """A size of a program; None where there is none, or the backend is mum."""
  memory = program and program.memory
  size = getattr(memory, f'{kind}_size_in_bytes', None)
  return None if size is None else round(size / 1e6, 3)

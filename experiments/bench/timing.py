"""Cases that take turns, and the rows of numbers they come to.

All cases of a group take turns in rounds, each in a random order, so that
whatever else the machine does hits them alike. Times are medians over rounds, a
ratio is the median of the ratios within rounds to the group's first case, and a
spread the interquartile range.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import re
import sys
import time
from typing import Any
from typing import NamedTuple

import jax
import numpy as np


class Limits(NamedTuple):
  """What a device was measured to reach; see `limits.measure`."""

  copy_gb_per_s: float  # of 1e9 bytes, read and written
  matmul_gflops_per_s: float
  matmul: str  # size and dtype of that product


class Options(NamedTuple):
  """What the flags ask of a suite."""

  shapes: Sequence[Any]  # as Suite.read_shape gives them
  rounds: int
  config: Any  # of the train step
  variants: str = '.*'  # regular expression of those to time
  torch_python: str | None = None  # interpreter that has torch
  # Other projects, and interpreters with them.
  peers: Mapping[str, str] | None = None
  limits: Limits | None = None
  # Is given each case that was timed, with the name of its group.
  examine: 'Callable[[str, Case], None] | None' = None

  def wants(self, variant: str) -> bool:
    """Whether a variant is to be timed."""
    return re.fullmatch(self.variants, variant) is not None

  def timed(
    self,
    shape: str,
    cases: 'Sequence[Case]',
    rounds: int | None = None,
    **options: Any,
  ) -> 'list[Row]':
    """`timed`, with these rounds if no others are given."""
    rows = timed(shape, cases, rounds or self.rounds, **options)
    if self.examine is not None:
      for case in cases:
        self.examine(shape, case)
    return rows


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
  tokens_per_s: float | None = None  # that were sampled, or learned from
  of_limit: float | None = None  # the limit's time over this
  peak_mb: float | None = None  # in RAM, since the start of its process
  # Ratios to other projects, as `ratio` is to the first case.
  to_trl: float | None = None
  to_trl_spread: float | None = None
  to_tunix: float | None = None
  to_tunix_spread: float | None = None
  to_faster: float | None = None  # of the two: that of the smaller median
  to_faster_spread: float | None = None


class Suite(NamedTuple):
  """What the command needs to know of a suite."""

  measure: Callable[[Options], list[Row]]
  variants: Callable[[], Iterable[str]]  # what Options.variants may match
  shapes: tuple[str, ...]  # by default, each as 64x1024, or a name
  rounds: int  # by default
  has_torch: bool = False  # times torch too, where there is one
  has_peers: bool = False  # times other projects too, where they are
  has_limits: bool = False  # holds rows to what the device can do
  # What a shape that is a name stands for; None: shapes are as 64x1024.
  named: Callable[[str], Any] | None = None

  def read_shape(self, text: str) -> Any:
    """What a text names, or its sizes, as many as in the suite's own shapes.

    Raises:
      ValueError: it is no such text; the message starts with it.
    """
    if self.named:
      return self.named(text)
    like, sizes = self.shapes[0], text.split('x')
    if len(sizes) != len(like.split('x')) or not all(
      size.isdecimal() and int(size) > 0 for size in sizes
    ):
      raise ValueError(f'{text}: must be as {like}')
    return tuple(int(size) for size in sizes)


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
  tokens: int | None = None  # of one call
  limit_s: float | None = None  # the least that the device could take
  is_here: bool = True  # in this process
  # What the last call took in parts, by mode.
  parts: Callable[[], dict[str, float]] | None = None
  peak_mb: Callable[[], float] | None = None  # so far, of its process
  peer: str | None = None  # the other project whose step this is


def compiled(
  function: Callable, *arguments: Any, donate: tuple[int, ...] = ()
) -> Program:
  """Compiles a function for arguments like these.

  Args:
    function: pure, of arrays.
    *arguments: what it will be called with.
    donate: places of arguments whose buffers a call may use up.
  """
  start = time.perf_counter()
  program = jax.jit(function, donate_argnums=donate).lower(*arguments).compile()
  return Program(
    program, time.perf_counter() - start, program.memory_analysis()
  )


def wall_clock(call: Callable[[], Any]) -> Callable[[int], float]:
  """`Case.seconds` of a call that returns arrays."""

  def seconds(repeats):
    start = time.perf_counter()
    for _ in range(repeats):
      jax.block_until_ready(call())
    return (time.perf_counter() - start) / repeats

  return seconds


def tell(message: str) -> None:
  """A line for the user, beside the tables."""
  print(f'bench: {message}', file=sys.stderr)


def timed(
  shape: str,
  cases: Sequence[Case],
  rounds: int,
  *,
  repeats: int = 1,
  fill_caches: bool = True,
  warmups: int = 1,
) -> list[Row]:
  """Times cases that take turns.

  Args:
    shape: name of the group.
    cases: the first is what the others are held to; after each come its parts.
    rounds: how often each has its turn.
    repeats: calls of one turn.
    fill_caches: whether a turn starts with a call that isn't timed. Calls of a
      tenth of a second hardly gain by it.
    warmups: calls of each before all rounds.
  """
  for case in cases:
    for _ in range(warmups):
      case.seconds(1)
  seconds, parts = _in_turns(cases, rounds, repeats, fill_caches)
  of_peers = {
    case.peer: seconds[:, i] for i, case in enumerate(cases) if case.peer
  }
  # A part is held to no step of another project.
  others = lambda case: of_peers if case.mode == cases[0].mode else {}
  return [
    _row(shape, found, column, seconds[:, 0], others(found))
    for i, case in enumerate(cases)
    for found, column in [(case, seconds[:, i]), *_parts(case, parts[i])]
  ]


def _in_turns(cases, rounds, repeats, fill_caches):
  """Seconds [rounds, cases], and for each case what it told of its parts."""
  seconds = np.zeros((rounds, len(cases)))
  parts: list[list[dict]] = [[] for _ in cases]
  rng = np.random.default_rng(0)
  for of_round in seconds:
    for i in rng.permutation(len(cases)):
      if fill_caches:
        cases[i].seconds(1)
      of_round[i] = cases[i].seconds(repeats)
      if cases[i].parts:
        parts[i].append(cases[i].parts())
  return seconds, parts


def _parts(case, of_rounds):
  """(case, seconds of each round) of what a case tells of its parts."""
  for mode in of_rounds[0] if of_rounds else ():
    column = np.array([of_round[mode] for of_round in of_rounds])
    yield Case(case.variant, mode, case.seconds), column


def _to_peers(seconds, of_peers):
  """Fields of a row: its ratios to other projects."""
  values = {}
  if of_peers:
    faster = min(of_peers.values(), key=np.median)
    for name, others in (of_peers | {'faster': faster}).items():
      middle, spread = _middle(seconds / others)
      values[f'to_{name}'] = round(middle, 5)
      values[f'to_{name}_spread'] = round(spread, 5)
  return values


def _row(shape, case, seconds, first, of_peers):
  middle, spread = _middle(seconds)
  ratio, ratio_spread = _middle(seconds / first)
  rate = lambda amount: amount and round(amount / middle, 3)
  return Row(
    shape=shape,
    variant=case.variant,
    mode=case.mode,
    rounds=len(seconds),
    ms=round(1e3 * middle, 4),
    ms_spread=round(1e3 * spread, 4),
    ratio=round(ratio, 5),
    ratio_spread=round(ratio_spread, 5),
    gflops_per_s=rate(case.flops and case.flops / 1e9),
    compile_s=case.program and round(case.program.compile_s, 3),
    temporary_mb=_megabytes(case.program, 'temp'),
    output_mb=_megabytes(case.program, 'output'),
    tokens_per_s=rate(case.tokens),
    of_limit=case.limit_s and round(case.limit_s / middle, 4),
    peak_mb=case.peak_mb and round(case.peak_mb(), 3),
    **_to_peers(seconds, of_peers),
  )


def _middle(values):
  """Median and interquartile range."""
  low, middle, high = map(float, np.percentile(values, [25, 50, 75]))
  return middle, high - low


def _megabytes(program, kind):
  """A size of a program; None where there is none, or the backend is mum."""
  memory = program and program.memory
  size = getattr(memory, f'{kind}_size_in_bytes', None)
  return None if size is None else round(size / 1e6, 3)

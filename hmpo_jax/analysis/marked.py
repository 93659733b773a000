"""Pages with parts that a program writes, so that no number is typed.

A part stands between two comments,

  <!-- answers: NAME -->
  <!-- end of answers -->

and is one of answers.PARTS.
"""

from collections.abc import Mapping
import re

from hmpo_jax import config as config_lib
from hmpo_jax.analysis import answers

_MARKED = re.compile(
  r'(<!-- answers: (?P<name>[\w-]+) -->\n)((?!<!-- answers).)*?'
  r'(?P<end><!-- end of answers -->)',
  re.DOTALL,
)
_MARK = re.compile(r'<!--\s*(answers\b|end of answers)')


def fill(page: str, blocks: Mapping[str, answers.Block]) -> str:
  """A page with each of its marked parts as the blocks have it.

  Raises:
    ConfigError: a part of an unknown name, or a mark without its other.
  """

  def part(match):
    name = match['name']
    if name not in answers.PARTS:
      raise config_lib.ConfigError(
        f'answers: {name}: no such part; there are {", ".join(answers.PARTS)}'
      )
    return f'{match[1]}\n{answers.PARTS[name](blocks)}\n\n{match["end"]}'

  filled, count = _MARKED.subn(part, page)
  marks = len(_MARK.findall(page))
  if marks != 2 * count:
    raise config_lib.ConfigError(
      f'answers: {marks} marks make {count} parts: each must begin with a '
      'line <!-- answers: NAME --> and end with <!-- end of answers -->'
    )
  return filled

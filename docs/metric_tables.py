"""Writes the tables of docs/telemetry.md: python docs/metric_tables.py."""

import pathlib
import re

from hmpo_jax.training import metric_table

PAGE = pathlib.Path(__file__).resolve().parent / 'telemetry.md'
_TABLE = re.compile(r'^\| (?:metric|field) \|.*\n(?:\|.*(?:\n|\Z))+', re.M)


def with_tables(text: str) -> str:
  """The page with its tables of metrics and fields as their rows are today."""
  parts = iter(metric_table.DOCUMENTED)
  return _TABLE.sub(lambda _: f'{metric_table.markdown(next(parts))}\n', text)


if __name__ == '__main__':
  PAGE.write_text(
    with_tables(PAGE.read_text(encoding='utf-8')), encoding='utf-8'
  )

"""Writes the tables of the API pages: python docs/api_tables.py.

The site makes the reference of a module where a page says `::: module`; the
table above it is what a reader of the repository sees, too.
"""

import importlib
import inspect
import pathlib
import re
import sys

_ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = sorted((_ROOT / 'docs' / 'api').glob('*.md'))
_MODULE = re.compile(
  r'(?:\*\*`[\w.]+`\*\* [^\n]*\n\n(?:\|[^\n]*\n)+\n)?^::: (\S+)$', re.M
)


def with_tables(text: str) -> str:
  """A page with the table of each of its modules as it is today.

  It has the first line of the module's docstring, and those of its public
  functions and classes; of a package, those that it offers from its modules.
  """
  return _MODULE.sub(
    lambda match: f'{_table(match[1])}\n\n::: {match[1]}', text
  )


def _table(name):
  module = importlib.import_module(name)
  lines = [
    f'**`{name}`** {_first_line(module)}',
    '',
    '| name | what it is |',
    '|---|---|',
  ]
  for member, value in vars(module).items():
    is_code = inspect.isfunction(value) or inspect.isclass(value)
    is_own = is_code and (
      value.__module__ == name or member in getattr(module, '__all__', ())
    )
    if is_own and not member.startswith('_'):
      lines.append(f'| `{member}` | {_first_line(value)} |')
  return '\n'.join(lines)


def _first_line(value):
  line = (inspect.getdoc(value) or '').split('\n\n')[0].replace('\n', ' ')
  return line.replace('|', r'\|')


if __name__ == '__main__':
  sys.path.insert(0, str(_ROOT))
  for page in PAGES:
    page.write_text(
      with_tables(page.read_text(encoding='utf-8')), encoding='utf-8'
    )

"""What mkdocs is taught: equations as MathML, links to the repository's files.

A page reads the same in the repository and on the site: an equation stands as
$...$ or in a fence `math`, and an image or a table outside docs/ is linked by
its place in the repository, ../results/..., from where it is copied.
"""

import html
import logging
import pathlib
import re

from latex2mathml import converter
from mkdocs.structure import files as files_lib

_log = logging.getLogger('mkdocs.hooks')  # its warnings fail a strict build

_ROOT = pathlib.Path(__file__).parent.parent
_LINK = re.compile(r'\]\(\.\./(results/[^)#\s]+)\)')
_MATH = re.compile(
  r'<(span|div) class="arithmatex">\\([(\[])\s*(.*?)\s*\\[)\]]</\1>', re.DOTALL
)
# Nothing parts the name of a function from a bare argument.
_LOG = re.compile(r'<mi>(log|exp|max|min)</mi>(?=<(?!mo|/))')


def on_files(files, config):
  """Adds what the pages link outside docs/."""
  texts = [
    file.content_string for file in files if file.src_uri.endswith('.md')
  ]
  for name in sorted({name for text in texts for name in _LINK.findall(text)}):
    if (_ROOT / name).is_file():  # else the link is reported as broken
      files.append(
        files_lib.File.generated(config, name, abs_src_path=str(_ROOT / name))
      )
  return files


def on_page_markdown(markdown, page, **_):
  """Points such links at the copies."""
  up = '../' * page.file.src_uri.count('/')
  return _LINK.sub(lambda match: f']({up}{match[1]})', markdown)


def on_page_content(content, page, **_):
  """Turns equations into MathML, and warns of what is none."""
  content = _MATH.sub(lambda match: _mathml(match, page), content)
  if 'class="arithmatex"' in content:
    _log.warning('%s: an equation was not found', page.file.src_uri)
  return content


def _mathml(match, page):
  display = 'block' if match[2] == '[' else 'inline'
  source = html.unescape(match[3])
  result = converter.convert(source, display=display)
  # What the converter doesn't know stays: a backslash, or the & of a table.
  if '\\' in result or '>&<' in result:
    _log.warning('%s: no MathML for %r', page.file.src_uri, source)
  return _LOG.sub(r'\g<0><mspace width="0.17em"/>', result)

"""What the documentation holds: its pages, commands, links and headings."""

from collections.abc import Iterator
import pathlib
import re
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parent.parent

_FENCE = re.compile(
  r'^ *(?:[-*] +|\d+\. +)?(?P<ticks>`{3,})(?P<language>\w*)[^\n`]*\n'
  r'(?P<body>.*?)^ *(?P=ticks) *$',
  re.M | re.S,
)
_CODE = re.compile(r'(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)', re.S)
_SHELL = ('sh', 'bash', 'shell', 'console')
# What a command starts with, after settings of the environment.
_PROGRAM = re.compile(
  r'(?:[A-Z_]+=\S+ +)*(?:(?:python|pip)[\d.]*|pytest|tensorboard|jupyter|git|'
  r'bash|source|mkdocs|ruff|mypy|pre-commit|cffconvert|\.?\.?/?[\w.]*/?\.ci/run)'
  r'(?= |$)'
)
_LINK = re.compile(
  r'(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(<?([^\s()<>]+)>?'
  r'(?: +["\'][^"\']*["\'])?\)'
)
_REFERENCE = re.compile(r'^\[([^\]]+)\]: +<?(\S+?)>?(?: .*)?$', re.M)
_AUTOLINK = re.compile(r'<(https?://[^\s<>]*)>')
_HTML_IMAGE = re.compile(r'<img\b[^>]*>')


class Link(NamedTuple):
  """One link or image of a page."""

  target: str
  text: str
  is_image: bool


def pages() -> list[pathlib.Path]:
  """All pages that a reader finds."""
  root_pages = ('README.md', 'CHANGELOG.md', 'CONTRIBUTING.md')
  found = [ROOT / name for name in root_pages if (ROOT / name).exists()]
  return found + sorted((ROOT / 'docs').rglob('*.md'))


def blocks(text: str) -> Iterator[tuple[str, str]]:
  """Language ('' if unnamed) and content of each fenced block."""
  for match in _FENCE.finditer(text):
    yield match['language'], match['body']


def prose(text: str) -> str:
  """The page without its fenced blocks and comments."""
  return re.sub(r'<!--.*?-->', '', _FENCE.sub('', text), flags=re.S)


def commands(text: str) -> list[str]:
  """Commands of a page, each on one line, in their order without repetition.

  They are the lines of blocks that are marked as shell, and those of blocks
  without a language and spans of code of at least two words that start with a
  known program. A line is split at && and continues after a backslash.
  """
  found: list[str] = []
  for language, body in blocks(text):
    if language and language not in _SHELL:
      continue
    for line in body.replace('\\\n', ' ').splitlines():
      for part in line.split(' && '):
        command = ' '.join(part.split()).removeprefix('$ ')
        is_known = _PROGRAM.match(command)
        if is_known or (language and command and not command.startswith('#')):
          found.append(command)
  for _, span in _CODE.findall(prose(text)):
    command = ' '.join(span.split())
    if ' ' in command and _PROGRAM.match(command):
      found += command.split(' && ')
  return list(dict.fromkeys(found))


def links(text: str) -> list[Link]:
  """Links and images of a page, outside of code."""
  plain = _CODE.sub(lambda match: '`' * len(match[1]), prose(text))
  # An image inside a link counts too.
  found = []
  for match in _LINK.finditer(plain):
    found.append(Link(match[3], match[2], bool(match[1])))
    found += [
      Link(inner[3], inner[2], bool(inner[1]))
      for inner in _LINK.finditer(match[2])
    ]
  found += [Link(m[2], m[1], False) for m in _REFERENCE.finditer(plain)]
  found += [Link(m[1], m[1], False) for m in _AUTOLINK.finditer(plain)]
  for tag in _HTML_IMAGE.findall(plain):
    attributes = dict(re.findall(r'(\w+)="([^"]*)"', tag))
    found.append(
      Link(attributes.get('src', ''), attributes.get('alt', ''), True)
    )
  return found


def anchors(text: str) -> list[str]:
  """Names of the headings as links know them, on GitHub and in the site."""
  found: list[str] = []
  for match in re.finditer(r'^#{1,6} +(.+?) *#*$', prose(text), re.M):
    title, _, attributes = match[1].partition(' {')
    title = re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', title)
    name = re.sub(r'[^\w\- ]', '', title.lower()).strip().replace(' ', '-')
    explicit = re.match(r'\s*#([\w.-]+)', attributes)
    found.append(explicit[1] if explicit else name)
  return found + re.findall(r'<a (?:id|name)="([^"]+)"', text)

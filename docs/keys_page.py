"""Writes docs/keys.md from the table of keys: python docs/keys_page.py."""

import pathlib

from hmpo_jax.config import keys
from hmpo_jax.config import rules
from hmpo_jax.config.key_rows import row

PAGE = pathlib.Path(__file__).resolve().parent / 'keys.md'
_INTRO = """# Configuration keys

All keys of a run. A file in `configs/` sets them in Python
(`config.loss.p = -0.5`), the command line overrides them
(`--config.loss.p=-0.5`). A value has the type of its default. A wrong key, a
value out of range and one that would do nothing each end in one line before
anything runs.

The *role* of a key says what takes its value:

"""
_HEAD = """| key | default | must be | role | meaning |
|---|---|---|---|---|
"""
_JOINT = """
## Rules that join keys

Besides, a key that a choice has no use for must keep its default: the options of
other losses, orders and optimizers, and those of a feature that is off.

| keys | rule |
|---|---|
"""


def text() -> str:
  """The whole page, from the table and the rules that join keys."""
  parts = [
    _INTRO,
    ''.join(f'- *{role}*: {words}\n' for role, words in row.ROLES.items()),
  ]
  for section, content in keys.SECTIONS.items():
    parts.append(f'\n## {section or "The run"}\n\n{content.meaning}\n\n')
    parts.append(_HEAD)
    for name, found in content.rows.items():
      parts.append(
        _line(
          f'`{section}.{name}`' if section else f'`{name}`',
          f'`{found.default!r}`',
          found.allowed.words,
          found.role,
          found.meaning,
        )
      )
  parts.append(_JOINT)
  for names, _, words in rules.JOINT_RULES:
    parts.append(_line(', '.join(f'`{name}`' for name in names), words))
  return ''.join(parts)


def _line(*cells):
  escaped = [cell.replace('|', r'\|') for cell in cells]
  return f'| {" | ".join(escaped)} |\n'


if __name__ == '__main__':
  PAGE.write_text(text(), encoding='utf-8')

"""What mkdocstrings is taught: equations in docstrings keep their lines."""

import griffe

_SECTIONS = ('Args:', 'Returns:', 'Raises:', 'Yields:', 'Attributes:')


class Equations(griffe.Extension):
  """Makes code of what stands indented between blank lines.

  The docstrings indent equations and lists by 2 spaces, which Markdown takes
  for text that flows; by 4 it is code.
  """

  def on_object(self, *, obj, **_):
    """Indents such lines in one docstring, before its sections."""
    if obj.docstring:
      obj.docstring.value = _as_code(obj.docstring.value)


def _as_code(text):
  lines, added, was_blank = text.split('\n'), '', False
  for number, line in enumerate(lines):
    if line in _SECTIONS:
      break
    if line.strip():
      if not line.startswith('  '):
        added = ''
      elif was_blank and not line.startswith('    '):
        added = '  '
      lines[number] = added + line
    was_blank = not line.strip()
  return '\n'.join(lines)

"""What mkdocstrings is taught: to keep the lines of equations, and fields."""

import griffe

_SECTIONS = ('Args:', 'Returns:', 'Raises:', 'Yields:', 'Attributes:')


class Docstrings(griffe.Extension):
  """Makes code of what stands indented, and attributes of commented fields.

  The docstrings indent equations and lists by 2 spaces, which Markdown takes
  for text that flows; by 4 it is code. The fields of a NamedTuple or dataclass
  are told in comments beside or above them, which no parser reads.
  """

  def on_object(self, *, obj, **_):
    """Changes one docstring."""
    if not obj.docstring:
      return
    obj.docstring.value = _as_code(obj.docstring.value)
    if obj.is_class and 'Attributes:' not in obj.docstring.value:
      fields = [
        f'  {name}: {_comment(member)}'
        for name, member in obj.members.items()
        if member.is_attribute and 'property' not in member.labels
      ]
      if fields:
        obj.docstring.value += '\n\nAttributes:\n' + '\n'.join(fields)


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


def _comment(field):
  """The comment behind a field, or else those in the lines above it."""
  lines = field.filepath.read_text(encoding='utf-8').split('\n')
  _, _, behind = lines[field.endlineno - 1].partition('  # ')
  above: list[str] = []
  for line in reversed(lines[: field.lineno - 1]):
    if not line.strip().startswith('# '):
      break
    above.insert(0, line.strip()[2:])
  return behind or ' '.join(above)

"""A file of a user's functions, for tests of what a configuration names."""

import pathlib
import tempfile

from absl.testing import parameterized


class UserFileTest(parameterized.TestCase):
  """Writes TEXT to `file`, in a `folder` that goes with the test."""

  TEXT = ''

  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.folder = pathlib.Path(folder.name)
    self.file = self.folder / 'mine.py'
    self.file.write_text(self.TEXT, encoding='utf-8')

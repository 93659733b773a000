"""Files that a kill or a full disk leaves whole."""

import json
import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest

from hmpo_jax.run import files


class WriteJsonTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.file = pathlib.Path(folder.name) / 'summary.json'
    files.write_json(self.file, {'steps': 1})

  def _assert_holds(self, content):
    text = self.file.read_text(encoding='utf-8')
    self.assertEqual(json.loads(text), content)

  def test_replaces_the_whole_file_and_leaves_no_other(self):
    files.write_json(self.file, {})
    self._assert_holds({})
    self.assertEqual(list(self.file.parent.iterdir()), [self.file])

  def test_full_disk_leaves_the_old_file(self):
    write = pathlib.Path.write_text

    def fill(path, text, **options):
      write(path, text[:5], **options)
      raise OSError('no space left')

    with mock.patch.object(pathlib.Path, 'write_text', fill):
      with self.assertRaisesRegex(OSError, 'no space left'):
        files.write_json(self.file, {'steps': 2})
    self._assert_holds({'steps': 1})
    files.write_json(self.file, {'steps': 3})
    self._assert_holds({'steps': 3})

  def test_what_is_not_json_leaves_the_old_file(self):
    with self.assertRaises(TypeError):
      files.write_json(self.file, {'steps': object()})
    self._assert_holds({'steps': 1})


class ReadJsonTest(absltest.TestCase):
  def test_what_is_no_whole_object_is_none(self):
    with tempfile.TemporaryDirectory() as folder:
      file = pathlib.Path(folder) / 'failed.json'
      self.assertIsNone(files.read_json(file))
      self.assertIsNone(files.read_json(file / 'below'))
      for content in (b'', b'{"step": ', b'[1, 2]', b'3', b'\xff\xfe'):
        file.write_bytes(content)
        self.assertIsNone(files.read_json(file), content)
        self.assertIsNone(files.read_json(file / 'below'))
      files.write_json(file, {'step': 3})
      self.assertEqual(files.read_json(file), {'step': 3})


if __name__ == '__main__':
  absltest.main()

"""Runs notebooks and keeps what they put out: execute.py [NAME.ipynb ...].

  python notebooks/execute.py

runs all of them, in a kernel of this Python with the `notebook` extra, and
writes each back with its outputs. Training that a notebook finds
finished in runs/ is not done again: remove runs/power_means and runs/quickstart
first, so that the outputs are those of a first run.
"""

import hashlib
import pathlib
import sys

import nbclient
import nbformat

FOLDER = pathlib.Path(__file__).resolve().parent
_TIMEOUT = 1800  # seconds for one cell


def main(names: list[str]) -> None:
  """Runs notebooks of this folder.

  Args:
    names: of the files; none for all.

  Raises:
    CellExecutionError: a cell failed; the file stays as it was.
  """
  for file in [FOLDER / name for name in names] or sorted(
    FOLDER.glob('*.ipynb')
  ):
    notebook = nbformat.read(file, as_version=4)
    run(notebook, FOLDER)
    notebook.metadata['hmpo_jax'] = {'ran': digest(notebook)}
    # What the kernel says of its Python differs from machine to machine.
    notebook.metadata['language_info'] = {'name': 'python'}
    nbformat.write(notebook, file)
    print(file.name)


def run(notebook, folder: pathlib.Path) -> None:
  """Runs all cells of a notebook in place, without the times of day.

  Args:
    notebook: of nbformat 4.
    folder: in which the kernel starts.

  Raises:
    CellExecutionError: a cell failed.
  """
  client = nbclient.NotebookClient(
    notebook,
    timeout=_TIMEOUT,
    kernel_name='python3',
    record_timing=False,
    coalesce_streams=True,
    resources={'metadata': {'path': str(folder)}},
  )
  client.execute()


def digest(notebook) -> str:
  """SHA-256 of the code cells: whether outputs are those of these sources."""
  sources = [c.source for c in notebook.cells if c.cell_type == 'code']
  return hashlib.sha256('\0'.join(sources).encode()).hexdigest()


if __name__ == '__main__':
  main(sys.argv[1:])

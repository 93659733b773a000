"""`python experiments/bench`: see main.py."""

import pathlib
import runpy
import sys

# Not this folder: some of its modules have names of the standard library's.
sys.path[0] = str(pathlib.Path(__file__).resolve().parents[2])
runpy.run_module('experiments.bench.main', run_name='__main__', alter_sys=True)

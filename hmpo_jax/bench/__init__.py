"""What `experiments/bench.py` times: one module for each suite."""

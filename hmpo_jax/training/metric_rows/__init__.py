"""The rows of metric_table.py, by what they are of."""

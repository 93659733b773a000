"""Tests; `small` and `reference` hold what several of them share."""

"""Sweeps: each file lists runs for `python -m experiments.sweep --sweep=FILE.py`."""

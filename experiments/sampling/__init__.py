"""Samples of a trained run: opens runs, draws samples, and writes them to files."""

"""Metrics of samples, each next to the values of the prior and of real data."""

"""Performance measurements, run by hand as `python -m benchmarks.NAME` and never in a test."""

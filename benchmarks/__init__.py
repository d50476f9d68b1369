"""Performance measurements: run by hand, as `python -m benchmarks.NAME`, never in a test."""

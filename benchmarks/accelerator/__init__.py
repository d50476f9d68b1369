"""One command for the day an accelerator is there: `python -m benchmarks.accelerator`."""

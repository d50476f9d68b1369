"""Plans of runs for accelerators that are not there."""

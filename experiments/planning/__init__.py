"""Plans of runs for accelerators that this machine does not have."""

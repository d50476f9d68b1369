"""The hardware: compiler flags, devices, memory, and the hosts of a run."""

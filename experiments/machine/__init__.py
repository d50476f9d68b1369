"""What the program runs on: compiler flags, devices, and the hosts of one run."""

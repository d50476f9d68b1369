"""FDRL and its rivals with the same CPU seconds on the same images."""

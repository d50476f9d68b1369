"""Short programs that use only the library: `python -m examples.NAME`."""

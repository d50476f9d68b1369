"""How good samples are: each kind of data has its own judges."""

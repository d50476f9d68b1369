"""How good samples are: metrics between those of the prior and those of real data."""

"""Many runs in one go: a list of configs, run one after the other, then a table and a picture."""

"""One short file a run; all settings and their defaults stand in `base`."""

"""One short file per run. `base` has the defaults of all settings."""

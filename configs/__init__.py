"""Configs of runs, one short file each. `base` has the defaults of all settings."""

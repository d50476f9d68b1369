"""The documentation: its pages, the scripts that draw its pictures, and its settings."""

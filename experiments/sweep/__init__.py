"""Sweeps: run many configs one after the other, and compare them in a table and a picture."""

"""Faults, injected into the real program, and what they cost."""

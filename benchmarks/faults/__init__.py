"""Fault injection: faults in the real program, and what is lost."""

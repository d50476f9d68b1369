"""The one training loop, and what surrounds it: divergence, preemption, memory, metrics."""

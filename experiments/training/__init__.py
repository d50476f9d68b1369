"""The training loop, with divergence, preemption, hooks and the metrics log."""

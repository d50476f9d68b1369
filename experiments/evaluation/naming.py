"""Names of metrics say how many samples they were taken on: most depend on it."""


def with_count(name: str, num_samples: int) -> str:
    """Returns a metric's name with its number of samples: `fid_50k`, `fid_5k`, `fid_360`."""
    thousands, rest = divmod(num_samples, 1_000)
    return f"{name}_{num_samples}" if rest or not thousands else f"{name}_{thousands}k"

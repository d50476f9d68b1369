"""Unpaired translation on built-in data: from digits 3 to digits 8, or any other two.

Command: python -m experiments.main --config=configs/digits_pair.py --workdir=runs/digits_pair
Other digits: --config.data.source_class=1 --config.data.target_class=7
Cost: about 3 min on two CPU cores, with evaluation and report.
Score: with version 0.1, a classifier of ten digits assigned all 36 held-out threes to eights after
  the flow (97% of real eights, and none of the threes before). 39% were nearest to their own three
  of the 36 (3% by chance). The distance to it was 0.58, and that of a random eight 0.71.
"""

from ml_collections import ConfigDict

from configs import base, digits


def get_config(name: str = "") -> ConfigDict:
    """Returns the config, or its variant: "tiny"."""
    c = digits.get_config()
    c.data.source_class = "3"
    c.data.target_class = "8"
    c.prior.name = "source"
    c.data.dequantisation = 0.1  # Few images, of few grey levels: less noise is learnt by heart.
    c.train.num_steps = 1_000
    c.snapshot.every_steps = 250
    c.evaluate.num_samples = 36  # The held-out images of a digit.
    c.evaluate.batch_size = 36
    return base.variant(c, name)

"""Swiss roll in the plane, LR loss with the KL flow.

Command: python -m experiments.main --config=configs/swissroll.py --workdir=runs/swissroll
"""

from ml_collections import ConfigDict

from configs import base


def get_config(name: str = "") -> ConfigDict:
    c = base.get_config()
    c.data.name = "swissroll"
    c.flow.num_steps = 100
    c.flow.num_refine_steps = 20
    c.flow.step_size = 0.1
    c.flow.noise_scale = 0.01
    c.optimizer.learning_rate = 2e-3
    c.optimizer.schedule = "cosine"
    c.train.num_steps = 3_000
    c.train.batch_size = 256
    c.train.steps_per_dispatch = 50
    c.checkpoint.every_steps = 1_000
    c.snapshot.every_steps = 500
    c.snapshot.num_samples = 2_000
    c.evaluate.batch_size = 10_000
    return base.variant(c, name)

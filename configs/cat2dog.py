"""Cat2dog, 64 x 64: unpaired translation from cats to dogs (section 5.4 of the paper).

    python -m experiments.main --config=cat2dog --data_dir=FOLDER --workdir=runs/cat2dog

Data: a folder or zip with trainA, trainB, testA and testB. Time: not run at full scale; it needs a
GPU, docs/hardware.md. Variants: lr_kl and other pairs; `small` translates CIFAR-10's cats on a CPU
(docs/paper.md, claim 9).
"""

from ml_collections import ConfigDict

from configs import base


def get_config(name: str = "") -> ConfigDict:
    """Returns the config, or its variants, such as "lr_kl" or "small,tiny"."""
    names = name.split(",")
    c = base.small_images() if "small" in names else base.images()
    c.data.random_flip = True
    c.prior.name = "source"
    if "small" in names:
        c.data.name = "folder"
        c.data.image_size = 32
        c.data.source_class = "cat"
        c.data.target_class = "dog"
        c.train.num_steps = 1_500
        c.evaluate.num_samples = 200
        c.evaluate.batch_size = 200
    else:
        c.data.name = "pair"
        c.data.resize = 84
        c.data.image_size = 64
        c.network.name = "resnet64_shallow"
        c.network.attention = True
        c.network.spectral_norm = True
        c.flow.num_refine_steps = 10
        c.optimizer.boundaries = (20_000, 30_000)
        c.train.num_steps = 40_000  # Longer training tends to diverge.
        c.evaluate.num_samples = 100
    return base.variant(c, name, "small")

"""A robust classifier of CIFAR-10, for class-conditional samples: adversarial training.

Command: python -m experiments.main --mode=train_classifier --config=configs/cifar10_classifier.py \
  --workdir=runs/cifar10_classifier
  and, for a folder or zip instead of the prepared TFDS set,
  --config.data.name=folder --data_dir=FOLDER_OR_ZIP
Cost: hours on a GPU; not run here at full scale.
Score: not measured. The paper takes a ResNet-50 of the library "robustness", trained with the same
  attack (L2, epsilon 1), which --classifier reads as well.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(name: str = "") -> ConfigDict:
    """Returns the config, or its variant: "tiny"."""
    c = base.get_config()
    c.data.name = "tfds:cifar10"
    c.data.image_size = 32
    c.data.random_flip = True
    c.network.name = "resnet32"
    c.attack.epsilon = 1.0
    c.attack.num_steps = 7
    c.optimizer.learning_rate = 1e-3
    c.optimizer.schedule = "cosine"
    c.train.num_steps = 40_000
    c.train.batch_size = 128
    return base.variant(c, name)

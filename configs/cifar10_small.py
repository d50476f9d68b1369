"""CIFAR-10 with a small network and a short flow: real colour images on two CPU cores.

Command: python -m experiments.main --config=configs/cifar10_small.py --data_dir=FOLDER_OR_ZIP
  --workdir=runs/cifar10_small
The data are a folder or zip of PNG or JPEG files; use --config.data.name=tfds:cifar10 for the
prepared TFDS set.
It uses a larger network than the recipe for small images, and more but cheaper training steps. Such
steps help on CIFAR-10 and hurt on MNIST, see docs/learnt.md.
Cost: 98 min on two idle cores of an AMD EPYC with avx512_bf16, in bfloat16 (0.22 s per training
  step).
  214 CPU min on two cores of an Intel Xeon with AMX, in 143 min, while other programs ran in some
  of them.
  On one core of an AMD EPYC with AVX2, in float32, a training step without the denoiser takes
  1.9 s, and with --config.network.blocks="((32,2),(64,1),(64,2),(64,1))" 0.7 s
  (docs/results.md). On one core of another AMD EPYC, where a step takes 0.8 s in bfloat16,
  samples are better with these channels after half an hour (docs/results.md).
Score: with labels (--config.network.by_class=True --config.prior.num_components=4) and seeds 1 and
  2, after 20,000 steps (137 and 86 min on one core of an Intel Xeon with AMX, while other programs
  ran), Fréchet distance of 1,000 images 64 ± 5 and 60 ± 6 (prior 902 ± 31 and 898 ± 25, real
  images 51 ± 11) in the features of a classifier that is right on 81.9% of held-out images;
  0.0104 ± 0.0018 and 0.0106 ± 0.0034 (0.052 and 0.053, 0.0111 ± 0.0025) in random convolutions;
  mean top probability 0.863 and 0.862 (0.78, 0.905), class shares from 8.4% to 11.6% and 8.9% to
  11.5%, class accuracy 74% and 75% (43%, 82%).
  Without labels, with 48,000 images and seed 1, Fréchet distance 100 ± 15 (prior 1,022 ± 41, real
  images 50 ± 7) in the features of the same classifier; 0.018 ± 0.009 (0.065 ± 0.016,
  0.011 ± 0.002) in random convolutions; mean top probability 0.817 (0.758, 0.915), class shares
  from 6.9% to 13.8% (0.3% to 29%, 8.9% to 11.6%).
  With one Gaussian as the prior (cifar10_small.py:ddp), Fréchet distance 88 ± 8 (prior
  1,153 ± 26, real images 50 ± 10) in the features of a classifier that is right on 80.9% of
  held-out images; 0.017 ± 0.007 (0.094 ± 0.011, 0.011 ± 0.003) in random convolutions; mean top
  probability 0.800 (0.741, 0.902), class shares from 8.1% to 12.0% (0.6% to 28%, 8.5% to 11.5%),
  with 20,000 images and seed 2. Seed 1: 94 ± 3 (prior 1,140 ± 24), 0.014 ± 0.006, 0.800, and from
  7.8% to 12.8%. With half as many steps, seeds 1 and 2 have 143 ± 5 and 138 ± 14.
  docs/learnt.md says how often the object of a sample can be named.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(name: str = "") -> ConfigDict:
    """Returns the config, or its variants, such as "up"."""
    c = base.small_images()
    c.data.name = "folder"
    c.data.image_size = 32
    c.data.random_flip = True
    c.data.num_held_out = 2_000
    c.network.blocks = ((64, 2), (128, 1), (128, 2), (128, 1))
    # More and cheaper steps: half as many flow steps of twice the size, and half the batch.
    c.flow.num_steps = 6
    c.flow.num_refine_steps = 1
    c.flow.step_size = 25.4
    c.flow.noise_scale = 0.01
    c.train.num_steps = 27_000
    c.train.batch_size = 32
    c.checkpoint.every_steps = 500
    c.snapshot.every_steps = 500
    c.evaluate.num_samples = 5_000  # Five draws of 1,000.
    c.condition.num_refine_steps = 3
    return base.variant(c, name)

"""The defaults of all settings, and functions that the other configs share.

Each setting is declared once, in `experiments/settings.py`: default, allowed values and meaning.
"""

from ml_collections import ConfigDict

from experiments import settings
from fdrl_jax.fit import IMAGES, POINTS


def get_config() -> ConfigDict:
    """Returns the defaults; a config file changes what differs."""
    return ConfigDict(settings.defaults())


def points() -> ConfigDict:
    """Returns the defaults for densities in the plane.

    The recipe of the authors' code (learning rate 5e-5, batch 1,024, K = 200, step size 1) needs
    20,000 steps; this one reaches its quality in 3,000 cheaper ones.
    """
    c = get_config()
    c.flow.num_steps = 100
    c.flow.num_refine_steps = POINTS.num_refine_steps
    c.flow.step_size = POINTS.step_size
    c.flow.noise_scale = POINTS.noise_scale
    c.optimizer.learning_rate = POINTS.learning_rate
    c.optimizer.schedule = "cosine"
    c.train.num_steps = 3_000
    c.train.batch_size = POINTS.batch_size
    c.train.steps_per_dispatch = 50
    c.checkpoint.every_steps = 1_000
    c.snapshot.every_steps = 250
    c.evaluate.batch_size = 10_000
    return c


def images(variants: str = "") -> ConfigDict:
    """Returns the defaults for images: the paper's recipe with the data-dependent prior.

    LSIF with Pearson, the pair of its best figures (table 2); K = 100, 100,000 steps of batch 64.
    The dequantisation, and the clipping and the jitter of the prior, are those of the authors'
    code; the paper does not mention them. No image is mirrored. The configs of data sets whose
    mirror images are as plausible as the images turn it on.

    With precision "auto", the network computes in bfloat16 on accelerators and on CPUs that are
    fast in it. The authors computed in float32: --config.precision=float32. With the variant "up",
    kappa is 10, as in the paper, and otherwise 20.
    """
    c = get_config()
    c.precision = "auto"
    c.data.dequantisation = 0.03
    c.prior.name = "data_dependent"
    c.flow.num_refine_steps = 10 if "up" in variants.split(",") else 20
    c.loss.name = "lsif"
    c.loss.divergence = "pearson"
    c.evaluate.num_samples = 5_000
    c.evaluate.batch_size = 500
    return c


def small_images() -> ConfigDict:
    """Returns one recipe for small images of any kind, which a CPU can train.

    It differs from the paper's in what keeps training stable and short: a gradient penalty, a flow
    of 12 long steps instead of 100, a narrow network, and equal noise in samples and data:
    `prior.jitter + K nu^2` is about the variance of the dequantisation. A denoiser then removes
    this noise from samples. Step size and blocks follow from the shape of the images.
    docs/learnt.md and docs/failing.md have the evidence.
    """
    c = images()
    c.network.name = "resnet"
    c.network.width = IMAGES.width
    # Without biases, the output is linear along rays from zero, and backgrounds turn grey.
    c.network.use_bias = True
    c.network.denoiser_width = IMAGES.denoiser_width
    # Gaussians of clusters start nearer to data with several kinds of images.
    c.prior.num_components = 0
    c.prior.jitter = IMAGES.jitter
    c.flow.num_steps = IMAGES.num_flow_steps
    c.flow.num_refine_steps = IMAGES.num_refine_steps
    c.flow.step_size = IMAGES.step_size
    c.flow.noise_scale = IMAGES.noise_scale
    c.data.dequantisation = IMAGES.dequantisation
    c.loss.name, c.loss.divergence = "lr", "kl"
    c.loss.gradient_penalty = IMAGES.gradient_penalty
    c.loss.gradient_penalty_fraction = IMAGES.gradient_penalty_fraction
    c.optimizer.learning_rate = IMAGES.learning_rate
    c.optimizer.b1 = IMAGES.b1
    c.optimizer.warmup_steps = IMAGES.warmup_steps
    c.optimizer.schedule = "cosine"
    c.train.num_steps = IMAGES.num_steps
    c.train.batch_size = IMAGES.batch_size
    # Healthy runs stay below 0.8. Above 3, samples no longer improve.
    c.train.max_log_ratio = 2.0
    c.log.every_steps = 10
    c.checkpoint.every_steps = 200
    c.snapshot.every_steps = 200
    c.evaluate.num_samples = 1_000
    c.evaluate.batch_size = 250
    return c


def tiny(c: ConfigDict) -> ConfigDict:
    """Shrinks a config to a run of seconds that still goes through everything once."""
    if c.network.name != "mlp":
        # One block, because the networks of the paper compile for minutes at any width.
        c.network.name = "resnet"
        c.network.width = 8
        c.network.blocks = ((8, 2),)
        c.network.denoiser_width = min(c.network.denoiser_width, 4)
    c.flow.num_steps = 3
    c.flow.num_refine_steps = 1
    c.train.num_steps = 4
    c.train.batch_size = 16
    c.train.steps_per_dispatch = 2
    c.log.every_steps = 2
    c.checkpoint.every_steps = 2
    c.snapshot.every_steps = 2
    c.evaluate.num_samples = 64
    c.evaluate.batch_size = 32
    return c


# The pairs of loss and divergence that the paper uses.
PAIRS = {
    "lsif_pearson": ("lsif", "pearson"),
    "lr_kl": ("lr", "kl"),
    "lr_js": ("lr", "js"),
    "lr_logd": ("lr", "logd"),
}


def variant(c: ConfigDict, names: str, *own: str) -> ConfigDict:
    """Applies the variants named after the colon of `--config=FILE.py:NAME,NAME`, but those in own.

    These are "tiny" (seconds), a pair of loss and divergence ("lsif_pearson", "lr_kl", "lr_js",
    "lr_logd"), "ddp" (data-dependent prior of the paper, one Gaussian) and "up" (uniform prior).
    """
    for name in (of for of in names.split(",") if of not in ("", *own)):
        if name in PAIRS:
            c.loss.name, c.loss.divergence = PAIRS[name]
        elif name == "ddp":
            c.prior.name, c.prior.num_components = "data_dependent", 1
        elif name == "up":
            c.prior.name = "uniform"
        elif name == "tiny":
            c = tiny(c)
        else:
            allowed = ", ".join(("tiny", "ddp", "up", *PAIRS, *own))
            raise ValueError(f"unknown variant {name!r} of the config; allowed: {allowed}")
    return c

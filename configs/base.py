"""Every setting of a run, with its default. Other configs are short variants of this one.

What values a key may have stands in `experiments/schema.py`; the defaults of training are the
paper's for images (section 5 and appendix D).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the defaults; a config file changes what differs."""
    c = ConfigDict()
    c.seed = 0
    # Of the network's computation; parameters and flow stay in float32. Accelerators are faster in
    # "tensorfloat32" (NVIDIA, from Ampere on) and, with half of the memory, in "bfloat16".
    c.precision = "float32"

    c.data = ConfigDict()
    # A built-in set (swissroll, 8gaussians, 25gaussians, digits) or images: folder (or a zip), npz,
    # lsun, pair, tfds:NAME. See docs/data.md.
    c.data.name = "swissroll"
    c.data.dir = ""  # Where images are; also --data_dir, or FDRL_DATA_DIR in the environment.
    c.data.split = "train"
    c.data.held_out_split = "test"
    c.data.num_held_out = 1_000  # Of a set without such a split, but at most a tenth of it.
    c.data.source_class = ""  # Paired domains: translate images of this class ...
    c.data.target_class = ""  # ... to this one.
    # Stored images become examples in this order (lengths in pixels, 0: leave the step out).
    c.data.center_crop = 0  # Cut this square from the centre.
    c.data.resize = 0  # Make the shorter side so long; 0: image_size.
    c.data.image_size = 0  # Cut this square from the centre; 0: images have one size already.
    c.data.keep_aspect = True  # False: squeeze images to the square instead.
    c.data.channels = 3
    c.data.random_flip = False  # Mirror half of the images, left to right.
    c.data.dequantisation = 0.0  # Standard deviation of Gaussian noise on data, scale [-1, 1].
    c.data.on_error = "stop"  # At a file that cannot be read; "skip" leaves it out and counts.
    c.data.in_memory_megabytes = 256  # Larger sets are streamed. CIFAR-10 has 147.
    c.data.num_workers = 0  # Processes that decode streamed images; 0: threads of the main one.
    c.data.num_threads = 4  # In each process.
    c.data.prefetch_batches = 8

    c.network = ConfigDict()
    c.network.name = "mlp"  # "auto" takes the paper's for the size of the images.
    c.network.hidden_sizes = (64, 64, 64, 64)  # Of "mlp".
    # Stem channels of a residual network, blocks in proportion; 0: those of the paper's table.
    c.network.width = 0
    c.network.blocks = ()  # (channels, stride) of each block of "resnet", the one without a table.
    c.network.attention = False
    c.network.attention_after = 1  # Block that self-attention follows in "resnet".
    c.network.spectral_norm = False
    c.network.remat = False  # Compute activations again in the backward pass, to save memory.

    c.prior = ConfigDict()
    c.prior.name = "normal"
    c.prior.scale = 1.0  # Standard deviation of "normal".
    c.prior.rank = 0  # Of the covariance of "data_dependent"; 0: full up to 12,288 dimensions.
    c.prior.jitter = 1e-4  # Added to the diagonal of the covariance of "data_dependent" (eq. 8).

    c.flow = ConfigDict()
    c.flow.num_steps = 100  # K, in training and as bridging steps in sampling.
    c.flow.num_refine_steps = 20  # kappa, further steps in sampling.
    c.flow.step_size = 3.0  # eta.
    c.flow.step_size_decay = 1.0  # Factor on eta by the K-th step, in geometric progression.
    c.flow.noise_scale = 0.01  # nu.

    c.loss = ConfigDict()
    c.loss.name = "lr"
    c.loss.divergence = "kl"

    c.optimizer = ConfigDict()
    c.optimizer.learning_rate = 1e-4
    c.optimizer.b1 = 0.9
    c.optimizer.b2 = 0.999
    c.optimizer.schedule = "piecewise"
    c.optimizer.boundaries = (80_000, 90_000)  # Steps at which "piecewise" multiplies by ...
    c.optimizer.decay = 0.1  # ... this factor.
    c.optimizer.clip_norm = 0.0  # Largest global norm of a gradient; 0 for no limit.

    c.train = ConfigDict()
    c.train.num_steps = 100_000
    c.train.batch_size = 64  # Over all devices.
    c.train.ema_rate = 0.998
    c.train.steps_per_dispatch = 10  # Train steps that the device takes without the host.
    # Equal parts of a replica's batch, one after the other, to save memory.
    c.train.num_micro_batches = 1
    c.train.max_log_ratio = 50.0  # With a mean log ratio beyond this a run counts as diverged ...
    c.train.max_ratio = 1e4  # ... and so with a mean ratio, for a network that returns the ratio.
    # Then: "stop"; or "rollback" to the last checkpoint, past the batches since.
    c.train.on_divergence = "stop"
    c.train.rollback_lr_factor = 0.5  # Multiplies the learning rate at each rollback.
    c.train.max_rollbacks = 3

    c.log = ConfigDict()
    c.log.every_steps = 100
    c.log.tensorboard = False
    c.log.wandb = "off"

    c.checkpoint = ConfigDict()
    c.checkpoint.every_steps = 5_000
    c.checkpoint.keep = 3

    c.snapshot = ConfigDict()
    c.snapshot.every_steps = 5_000  # Samples during training, for the picture of its course.
    c.snapshot.num_samples = 64

    c.sample = ConfigDict()
    c.sample.weights = "ema"  # The average of the parameters, or "raw", the newest.
    c.sample.format = "npz"  # In mode sample; for images also "folder" or "zip", of PNG files.
    c.sample.name = ""  # Of the files in mode sample; the step of the checkpoint if empty.

    c.condition = ConfigDict()  # Of mode sample: samples of a class.
    c.condition.label = ""  # Name or number of the class, or "all" in turn; also --class.
    # Workdir of a classifier, or a .pt of the library "robustness"; also --classifier.
    c.condition.classifier = ""
    c.condition.weight = 0.1  # phi.
    c.condition.num_refine_steps = 10  # kappa of these samples.

    c.attack = ConfigDict()  # Of mode train_classifier: images are perturbed ...
    c.attack.epsilon = 1.0  # ... within this L2 distance, on the scale [0, 1] of pixels ...
    c.attack.num_steps = 7  # ... in so many steps; 0 trains without, for comparison.

    c.augment = ConfigDict()  # Of mode train_classifier: training images are ...
    c.augment.max_shift = 0  # ... shifted by at most this many pixels along each axis; 0: not.

    c.curve = ConfigDict()  # Of mode curve: the metric ...
    c.curve.over = "length"  # ... against the length of the flow, or the training "step".
    c.curve.lengths = ()  # Increasing; empty for a choice from 0 to K + 50.

    c.evaluate = ConfigDict()
    c.evaluate.every_steps = 0  # A cheap metric during training, whose best is kept; 0 for never.
    c.evaluate.num_judged_samples = 1_000  # Samples of that metric.
    c.evaluate.num_samples = 10_000
    c.evaluate.batch_size = 1_000  # Samples at a time, over all devices; also in mode sample.
    # Files of weights for FID and its like (extra "eval"), none if empty: torch-fidelity's
    # weights-inception-2015-12-05-6726825d.pth, and torchvision's for the paper's protocol.
    c.evaluate.inception_weights = ""
    c.evaluate.legacy_weights = ""
    c.evaluate.inception_score = False
    return c


def points() -> ConfigDict:
    """Returns the defaults for densities in the plane.

    The paper's recipe (learning rate 5e-5, batch 1,024, K = 200, step size 1) needs 20,000 steps;
    this one reaches its quality in 3,000 cheaper ones.
    """
    c = get_config()
    c.network.name = "mlp"
    c.prior.name = "normal"
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
    c.snapshot.every_steps = 250
    c.snapshot.num_samples = 2_000
    c.evaluate.batch_size = 10_000
    return c


def images() -> ConfigDict:
    """Returns the defaults for images: the paper's recipe with the data-dependent prior.

    LSIF with Pearson, the pair of its best figures (table 2); K = 100, 100,000 steps of batch 64.
    """
    c = get_config()
    c.data.random_flip = True
    c.data.dequantisation = 0.03
    c.prior.name = "data_dependent"
    c.loss.name = "lsif"
    c.loss.divergence = "pearson"
    c.evaluate.num_samples = 5_000
    c.evaluate.batch_size = 500
    return c


def tiny(c: ConfigDict) -> ConfigDict:
    """Shrinks a config to a run of seconds that still goes through everything once."""
    if c.network.name != "mlp":
        c.network.width = 8
    if c.network.blocks:
        c.network.blocks = ((8, 2),)
    c.flow.num_steps = 3
    c.flow.num_refine_steps = 1
    c.train.num_steps = 4
    c.train.batch_size = 16
    c.train.steps_per_dispatch = 2
    c.log.every_steps = 2
    c.checkpoint.every_steps = 2
    c.snapshot.every_steps = 2
    c.snapshot.num_samples = 16
    c.evaluate.num_judged_samples = 32
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


def variant(c: ConfigDict, names: str) -> ConfigDict:
    """Applies the variants named after the colon of `--config=FILE.py:NAME,NAME`.

    Args:
      c: the config to change.
      names: none or more of "tiny" (seconds), a pair of loss and divergence ("lsif_pearson",
        "lr_kl", "lr_js", "lr_logd"), "ddp" (data-dependent prior) and "up" (uniform prior).

    Raises:
      ValueError: for an unknown variant.
    """
    for name in names.split(",") if names else ():
        if name in PAIRS:
            c.loss.name, c.loss.divergence = PAIRS[name]
        elif name == "ddp":
            c.prior.name = "data_dependent"
            c.flow.num_refine_steps = 20
        elif name == "up":
            c.prior.name = "uniform"
            c.flow.num_refine_steps = 10
        elif name == "tiny":
            c = tiny(c)
        else:
            allowed = ", ".join(("tiny", "ddp", "up", *PAIRS))
            raise ValueError(f"unknown variant {name!r} of the config; allowed: {allowed}")
    return c

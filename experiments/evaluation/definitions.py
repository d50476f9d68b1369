"""The definitions of all metrics, of which `docs/glossary.py` makes the glossary."""

from typing import Literal, NamedTuple


class Definition(NamedTuple):
    """A family of metrics."""

    words: str  # What it measures, as a phrase.
    formula: str  # In plain text.
    direction: Literal["lower", "higher"] | None  # Which values are better; `None` if neither are.
    protocol: str  # How it is estimated.
    unit: str = "1"  # Of the value.
    headline: bool = False  # Whether the summary of an evaluation includes it.


_NEIGHBOURS = "In a feature space, by distances to nearest neighbours."
_PROBABILITIES = "By a classifier of real images; on the draws of the Fréchet distance."
_INCEPTION = (
    "By torch-fidelity, against the training set (translation: held-out images of the target); the "
    "protocol is part of the name."
)

DEFINITIONS: dict[str, Definition] = {
    "energy_ratio": Definition(
        "energy distance to the data in units of the sampling error of real data",
        "1 + D / (E|Y - Y'| (1/N + 1/M)), D the unbiased energy distance",
        "lower",
        "D is unbiased and averaged over several fresh data sets of N points, so real data score "
        "1 on average. Single scores of real data scatter; their spread is given.",
        headline=True,
    ),
    "energy_distance": Definition(
        "energy distance to the data",
        "2 E|X - Y| - E|X - X'| - E|Y - Y'|",
        "lower",
        "Unbiased (U-statistic), so real data scatter around 0 and values may be negative.",
        unit="unit of the data",
    ),
    "kl_to_data": Definition(
        "KL divergence of the samples from the known density",
        "E_q[log q - log p]",
        "lower",
        "The entropy of the samples is estimated from nearest neighbours, so real data scatter "
        "around 0.",
        unit="nats",
    ),
    "modes_hit": Definition(
        "number of modes of the mixture that samples reach",
        "modes with a sample within 4 standard deviations",
        "higher",
        "A sample belongs to its nearest mode.",
        unit="modes",
    ),
    "high_quality_share": Definition(
        "share of samples close to a mode",
        "share within 4 standard deviations of a mode",
        "higher",
        "A sample belongs to its nearest mode.",
    ),
    "smallest_mode_share": Definition(
        "share of the samples on the rarest mode",
        "smallest share over the modes",
        "higher",
        "Counts samples within 4 standard deviations.",
    ),
    "kl_of_bridged_to_data": Definition(
        "KL divergence of the bridged samples from the known density",
        "E_q~[log q~ - log p] = E_q~[log r]",
        "lower",
        "As kl_to_data, on the samples after K steps that the estimator is trained on.",
        unit="nats",
    ),
    "kl_of_bridged_to_data_by_estimator": Definition(
        "the same divergence according to the estimator",
        "mean of log r over bridged samples",
        None,
        "Compare it with kl_of_bridged_to_data.",
        unit="nats",
    ),
    "log_ratio_kl": Definition(
        "error of the estimated log-ratio",
        "E_q~[log q~/p - log r] + E_p[r] - 1",
        "lower",
        "KL(q~ || r p), whose mass E_p[r] need not be 1; it is estimated on fresh data.",
        unit="nats",
    ),
    "frechet": Definition(
        "Fréchet distance between Gaussians fitted to features",
        "|m_X - m_Y|² + tr(C_X + C_Y - 2 (C_X C_Y)^(1/2))",
        "lower",
        "Biased upwards for few images, so compare at the same number only. The name contains the "
        "feature space.",
        unit="squared unit of the features",
        headline=True,
    ),
    "precision": Definition(
        "share of samples within the neighbourhoods of real images",
        "Kynkäänniemi et al. 2019",
        "higher",
        _NEIGHBOURS,
    ),
    "recall": Definition(
        "share of real images within the neighbourhoods of samples",
        "Kynkäänniemi et al. 2019",
        "higher",
        _NEIGHBOURS,
    ),
    "density": Definition(
        "how densely real neighbourhoods surround the samples",
        "Naeem et al. 2020",
        "higher",
        _NEIGHBOURS,
    ),
    "coverage": Definition(
        "share of real images that have a sample in their neighbourhood",
        "Naeem et al. 2020",
        "higher",
        _NEIGHBOURS,
    ),
    "pixel_energy_distance": Definition(
        "energy distance of pixels",
        "2 E|X - Y| - E|X - X'| - E|Y - Y'|",
        "lower",
        "Unbiased.",
        unit="pixel values in [-1, 1], Euclidean",
    ),
    "top_probability": Definition(
        "mean probability of the most probable class",
        "E max_c p(c | x)",
        "higher",
        _PROBABILITIES,
    ),
    "smallest_class_share": Definition(
        "share of the rarest class among the samples",
        "smallest share over the classes",
        "higher",
        _PROBABILITIES,
    ),
    "largest_class_share": Definition(
        "share of the most frequent class among the samples",
        "largest share over the classes",
        "lower",
        _PROBABILITIES,
    ),
    "class_accuracy": Definition(
        "share of samples that a classifier assigns to the class that they were drawn for",
        "share of i with argmax_c p(c | x_i) = y_i",
        "higher",
        "By a classifier of real images, on all samples of a run with network.by_class. Real data: "
        "accuracy of the classifier on held-out images.",
    ),
    "memorisation_auc": Definition(
        "probability that a sample is nearer to the training set than a held-out image",
        "area under the ROC curve of distances to the nearest training image",
        None,
        "0.5: as near as new images. 1: copies.",
    ),
    "memorisation_median_ratio": Definition(
        "distance of samples to the training set over that of held-out images",
        "ratio of medians of the distances to the nearest training image",
        None,
        "1: as near as new images. 0: copies.",
    ),
    "memorisation_p_value": Definition(
        "p-value of the copy test",
        "Mann-Whitney test, one-sided, of distances to the nearest training image",
        None,
        "A small value is suspicious, in particular with a high memorisation_auc.",
    ),
    "target_share": Definition(
        "share of translated images that a classifier assigns to the target",
        "share of predictions that are the target",
        "higher",
        "By a support-vector classifier of pixels. An image that fools it counts as well, so read "
        "it next to the Fréchet distance.",
        headline=True,
    ),
    "own_source_nearest_share": Definition(
        "share of translated images whose nearest source is their own",
        "share of i with argmin_j |x_i - s_j| = i",
        "higher",
        "Distances of pixels. Real data: 1 / N, the score of images unrelated to the sources.",
    ),
    "distance_to_own_source": Definition(
        "distance between a translated image and its source",
        "mean over i of |x_i - s_i|",
        None,
        "For real images of the target: distance to a source image at random.",
        unit="pixel values in [-1, 1], root mean square",
    ),
    "distance_to_other_sources": Definition(
        "distance between a translated image and the other sources",
        "mean over i and j != i of |x_i - s_j|",
        None,
        "As distance_to_own_source.",
        unit="pixel values in [-1, 1], root mean square",
    ),
    "fid": Definition(
        "Fréchet distance in the features of an Inception network",
        "as frechet",
        "lower",
        _INCEPTION,
        unit="squared unit of the features",
        headline=True,
    ),
    "kid": Definition(
        "kernel distance in the features of an Inception network",
        "squared MMD with the kernel (<a, b> / D + 1)³",
        "lower",
        "Mean over subsets; the spread is their standard deviation. " + _INCEPTION,
    ),
    "inception_score": Definition(
        "sharpness and variety of an Inception network's classes",
        "exp E KL(p(c | x) || p(c))",
        "higher",
        "Without a reference; the spread is over ten splits. " + _INCEPTION,
    ),
}

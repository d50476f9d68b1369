"""Density ratios with a known truth, next to other packages, on one CPU core.

    python -m benchmarks.ratios information --dims 40 80
    python -m benchmarks.ratios small
    python -m benchmarks.ratios chasm
    python -m benchmarks.ratios mixtures
    python -m benchmarks.ratios shift
    python -m benchmarks.ratios outliers [--mnist mnist.zip]
    python -m benchmarks.ratios density

Each command prints a table and writes it, with all options, to `runs/ratios/NAME.json`. The package
`densratio` is optional: `pip install '.[peers]'`. Without it, its rows are missing.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.spatial import cKDTree
from scipy.special import digamma, logsumexp
from scipy.stats import norm
from sklearn.datasets import load_diabetes, load_digits
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

import fdrl_jax as fdrl
from benchmarks.race.data import read
from fdrl_jax.method import objective
from fdrl_jax.ratio import LogDensity, Quadratic, Trunk

Row = dict[str, Any]
LogRatio = Callable[[np.ndarray], np.ndarray]

NUM_WAYMARKS = 7
STEPS = {40: 1_000, 80: 1_500, 160: 3_000, 320: 4_000}  # Training steps by dimension.


def timed(function: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[Any, float]:
    """Returns the result and the wall time in seconds, compilation included."""
    start = time.perf_counter()
    result = function(*arguments, **options)
    return result, time.perf_counter() - start


def correlated(seed: int, num: int, num_pairs: int, rho: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns pairs with a correlation of rho, [N, P] each."""
    rng = np.random.default_rng(seed)
    x, noise = rng.standard_normal((2, num, num_pairs), np.float32)
    return x, rho * x + (1.0 - rho**2) ** 0.5 * noise


def information(args: argparse.Namespace) -> Iterator[Row]:
    """Mutual information of correlated Gaussians: d / 4 nats in d dimensions (tre_code)."""
    for dim in args.dims:
        num_pairs = dim // 2
        rho = (1.0 - np.exp(-1.0)) ** 0.5  # Half a nat per pair.
        mlp = Trunk((min(4 * dim, 1024),))
        methods = {
            "single LR": {"bridge": "none", "network": mlp},
            "mixing": {"num_waymarks": NUM_WAYMARKS, "network": mlp},
            "quadratic, mixing": {
                "num_waymarks": NUM_WAYMARKS,
                "network": Quadratic(),
                # With 1e-2, 3,000 steps in 160 dimensions end above the loss of a ratio of 1.
                "learning_rate": 1e-2 if dim <= 80 else 3e-3,
            },
        }
        for name in args.methods or methods:
            for seed in range(args.seeds):
                x, y = correlated(seed, args.num, num_pairs, rho)
                steps = args.steps or STEPS[dim]
                options = methods[name] | {"num_steps": steps}
                estimate, seconds = timed(
                    fdrl.mutual_information, jax.random.key(seed), x, y, **options
                )
                yield {
                    "dimensions": dim,
                    "truth": dim / 4,
                    "method": name,
                    "seed": seed,
                    "nats": estimate.value,
                    "error %": 100.0 * (estimate.value / (dim / 4) - 1.0),
                    "steps": estimate.ratio.num_steps,
                    "seconds": seconds,
                }


def nearest_neighbours(x: np.ndarray, y: np.ndarray, k: int = 3) -> float:
    """Estimates mutual information by the first estimator of Kraskov et al. (2004)."""
    joint = np.concatenate([x, y], axis=1)
    distance = cKDTree(joint).query(joint, [k + 1], p=np.inf)[0][:, 0]
    radius = np.nextafter(distance, 0.0)
    counts = [
        cKDTree(part).query_ball_point(part, radius, p=np.inf, return_length=True)
        for part in (x, y)
    ]
    return float(digamma(k) + digamma(len(x)) - np.mean(digamma(counts[0]) + digamma(counts[1])))


def quadratic_logistic(top: np.ndarray, bottom: np.ndarray) -> LogRatio:
    """Returns a log-ratio of scikit-learn's logistic regression on quadratic features."""
    model = make_pipeline(
        StandardScaler(), PolynomialFeatures(2), LogisticRegression(C=0.1, max_iter=500)
    )
    labels = np.repeat([1, 0], [len(top), len(bottom)])
    model.fit(np.concatenate([top, bottom]), labels)
    return lambda x: model.decision_function(x) - np.log(len(top) / len(bottom))


def small_methods(seed: int, x: np.ndarray, y: np.ndarray) -> dict[str, Callable[[], float]]:
    """Returns all estimates of the mutual information of `x` and `y` by name."""

    def ours(**options: Any) -> float:
        return fdrl.mutual_information(jax.random.key(seed), x, y, **options).value

    def plug_in(fit: Callable[[np.ndarray, np.ndarray], LogRatio]) -> float:
        held_out = len(x) // 5
        pairs, shuffled = np.c_[x, y], np.c_[x, np.roll(y, 1, axis=0)]
        log_ratio = fit(pairs[held_out:], shuffled[held_out:])
        return float(np.mean(log_ratio(pairs[:held_out])))

    return {
        "single LR": partial(ours, bridge="none"),
        "mixing (default)": ours,
        "quadratic, single LR": partial(ours, bridge="none", network=Quadratic()),
        "scikit-learn, quadratic": partial(plug_in, quadratic_logistic),
        "nearest neighbours (KSG)": partial(nearest_neighbours, x, y),
        **{name: partial(plug_in, fit) for name, fit in installed_kernels().items()},
    }


def small(args: argparse.Namespace) -> Iterator[Row]:
    """Mutual information from 5,000 samples: 16 pairs with a correlation of 0.5."""
    truth = -8.0 * np.log(1.0 - 0.25)
    for seed in range(args.seeds):
        methods = small_methods(seed, *correlated(seed, args.num, 16, 0.5))
        for name in args.methods or methods:
            value, seconds = timed(methods[name])
            yield {
                "method": name,
                "seed": seed,
                "truth": truth,
                "nats": value,
                "error %": 100.0 * (value / truth - 1.0),
                "seconds": seconds,
            }


def fitted_gaussians(top: np.ndarray, bottom: np.ndarray) -> LogRatio:
    """Returns the log-ratio of two Gaussians with the moments of the sets and no covariances."""

    def log_density(x: np.ndarray, of: np.ndarray) -> np.ndarray:
        density: np.ndarray = norm.logpdf(x, of.mean(axis=0), of.std(axis=0)).sum(axis=-1)
        return density

    return lambda x: log_density(x, top) - log_density(x, bottom)


class Mixture:
    """A mixture of isotropic Gaussians with equal weights."""

    def __init__(self, *components: tuple[list[float], float]) -> None:
        self.means = np.array([mean for mean, _ in components])
        self.stds = np.array([std for _, std in components])

    def sample(self, rng: np.random.Generator, num: int) -> np.ndarray:
        which = rng.integers(len(self.stds), size=num)
        noise = rng.standard_normal((num, self.means.shape[1]))
        return self.means[which] + self.stds[which, None] * noise

    def log_density(self, x: np.ndarray) -> np.ndarray:
        parts = norm.logpdf(x[:, None], self.means, self.stds[:, None]).sum(axis=-1)
        return logsumexp(parts, axis=1) - np.log(len(self.stds))


CHASMS = {
    "scale": (Mixture(([0.0], 1e-3)), Mixture(([0.0], 1.0))),
    "location": (Mixture(([0.0], 1.0)), Mixture(([8.0], 1.0))),
    "location, 3-D": (Mixture(([0.0] * 3, 1.0)), Mixture(([8.0] * 3, 1.0))),
    "two modes": (Mixture(([-1.3], 0.2), ([-0.3], 0.2)), Mixture(([2.0], 0.3))),
    "telescoping": (Mixture(([-1.0], 0.08)), Mixture(([2.0], 0.16))),
}
MIXTURES = (
    Mixture(([-2.0, 2.0], 0.75**0.5), ([-1.5, 1.5], 0.5), ([-1.0, 1.0], 0.75**0.5)),
    Mixture(([0.75, -1.5], 0.5**0.5), ([-2.0, -3.0], 0.5**0.5)),
)


def kernels(top: np.ndarray, bottom: np.ndarray) -> LogRatio:
    """Fits uLSIF of the package densratio to at most 1,000 examples of each set.

    With all 20,000 of the mixtures, its cross-validation did not end within seven minutes. Its
    RuLSIF estimates a relative ratio, so it is not compared.
    """
    from densratio import densratio

    top, bottom = top[:1_000], bottom[:1_000]
    scale = StandardScaler().fit(np.concatenate([top, bottom]))
    sets = scale.transform(top), scale.transform(bottom)
    result = densratio(*sets, method="uLSIF", verbose=False)
    return lambda x: np.log(
        np.maximum(np.ravel(result.compute_density_ratio(scale.transform(x))), 1e-12)
    )


def installed_kernels() -> dict[str, Callable[[np.ndarray, np.ndarray], LogRatio]]:
    """Returns the fit of densratio by its name, none if it is not installed."""
    return {"densratio, uLSIF": kernels} if find_spec("densratio") else {}


def estimators(seed: int) -> dict[str, Callable[[np.ndarray, np.ndarray], LogRatio]]:
    """Returns all estimators of a log-ratio by name: ours, and those that are installed."""

    def ours(**options: Any) -> Callable[[np.ndarray, np.ndarray], LogRatio]:
        def fit(top: np.ndarray, bottom: np.ndarray) -> LogRatio:
            ratio = fdrl.fit_ratio(jax.random.key(seed), top, bottom, **options)
            return lambda x: np.asarray(ratio.log_ratio(np.float32(x)))

        return fit

    found = {
        "single LR": ours(bridge="none"),
        "mixing (default)": ours(),
        "LSIF": ours(loss="lsif", bridge="none"),
        "UKL": ours(loss="ukl", bridge="none"),
        "two Gaussians, no network": fitted_gaussians,
        "scikit-learn, quadratic": quadratic_logistic,
    }
    return found | installed_kernels()


def known_densities(pair: tuple[Mixture, Mixture], args: argparse.Namespace) -> Iterator[Row]:
    for seed in range(args.seeds):
        rng = np.random.default_rng(seed)
        top, bottom = (mixture.sample(rng, args.num) for mixture in pair)
        fresh = np.concatenate([mixture.sample(rng, 5_000) for mixture in pair])
        truth = pair[0].log_density(fresh) - pair[1].log_density(fresh)
        fits = estimators(seed)
        for name in args.methods or fits:
            log_ratio, seconds = timed(fits[name], top, bottom)
            error = np.abs(log_ratio(fresh) - truth)
            yield {
                "method": name,
                "seed": seed,
                "mean |log r|": float(np.abs(truth).mean()),
                "mean error": float(error.mean()),
                "on numerator": float(error[:5_000].mean()),
                "on denominator": float(error[5_000:].mean()),
                "seconds": seconds,
            }


def chasm(args: argparse.Namespace) -> Iterator[Row]:
    """Sets that a classifier separates; "telescoping" is the example of that paper."""
    for name in args.chasms or CHASMS:
        for row in known_densities(CHASMS[name], args):
            yield {"chasm": name} | row


def mixtures(args: argparse.Namespace) -> Iterator[Row]:
    """Two mixtures of Gaussians in the plane (the Q-flow paper)."""
    return known_densities(MIXTURES, args)


def shift(args: argparse.Namespace) -> Iterator[Row]:
    """Covariate shift: diabetes, where patients with a low body-mass index are in training."""
    data = load_diabetes()
    x, y = data.data, data.target
    score = x[:, 2] / x[:, 2].std() + x[:, 8] / x[:, 8].std()
    for seed in range(args.seeds):
        rng = np.random.default_rng(seed)
        chosen = rng.random(len(x)) < 1.0 / (1.0 + np.exp(1.5 * score))
        # A model that is too simple, since weights are of no use for a correct one.
        features = x[:, [2]]
        fits: dict[str, Any] = {"no weights": None, **estimators(seed)}
        for name in args.methods or fits:
            fit = fits[name]
            log_ratio, seconds = timed(fit, x[~chosen], x[chosen]) if fit else (None, 0.0)
            log_w = np.zeros(chosen.sum()) if log_ratio is None else log_ratio(x[chosen])
            weights = np.exp(log_w - logsumexp(log_w)) * len(log_w)
            model = LinearRegression().fit(features[chosen], y[chosen], sample_weight=weights)
            residual = y[~chosen] - model.predict(features[~chosen])
            yield {
                "method": name,
                "seed": seed,
                "RMSE": float(np.sqrt(np.mean(residual**2))),
                "effective size": float(weights.sum() ** 2 / np.sum(weights**2)),
                "training size": int(chosen.sum()),
                "seconds": seconds,
            }


def digits(mnist: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """Returns flat images and labels: scikit-learn's digits, or MNIST from class folders."""
    if mnist is None:
        data = load_digits()
        return data.data / 16.0, data.target
    from PIL import Image

    pixels, labels = read(mnist)
    grey = (Image.fromarray(image.squeeze()).convert("L") for image in pixels)
    images = [np.asarray(image.resize((14, 14)), np.float32).ravel() / 255.0 for image in grey]
    return np.stack(images), labels


def outliers(args: argparse.Namespace) -> Iterator[Row]:
    """A digit is missing in training: average precision of `-log r` for it in the test set.

    The numerator is the inliers of training. The denominator is a Gaussian fitted to them
    ("Gaussian"), or the unlabelled test set itself ("test set", Hido et al. 2011).
    """
    images, labels = digits(args.mnist)
    for seed in range(args.seeds):
        rng = np.random.default_rng(seed)
        noisy = images + rng.uniform(0.0, 1.0 / 16.0, images.shape)
        in_training = rng.random(len(images)) < 0.5
        for digit in (1, 4, 5, 7, 9):
            inliers = noisy[in_training & (labels != digit)]
            test, is_outlier = noisy[~in_training], labels[~in_training] == digit
            gaussian = rng.multivariate_normal(
                inliers.mean(axis=0), np.cov(inliers.T), len(inliers), method="eigh"
            )
            for name, bottom in (("Gaussian", gaussian), ("test set", test)):
                ratio, seconds = timed(
                    fdrl.fit_ratio, jax.random.key(seed), inliers, bottom, bridge="none"
                )
                score = -np.asarray(ratio.log_ratio(test))
                yield {
                    "digit": digit,
                    "denominator": name,
                    "seed": seed,
                    "average precision": float(average_precision_score(is_outlier, score)),
                    "share of outliers": float(is_outlier.mean()),
                    "seconds": seconds,
                }


MODES = Mixture(*(([1.5 * a, 1.5 * b], 0.5) for a in (-1, 1) for b in (-1, 1)))


def smooth_estimator(seed: int, step_size: float, num_steps: int) -> Callable[..., jax.Array]:
    """Trains a log-ratio by algorithm 1 without noise, from N(0, I) to four modes.

    The network is smooth: one that is piecewise linear has no Hessian.
    """
    network = Trunk((64, 64))
    real = jnp.asarray(MODES.sample(np.random.default_rng(seed), 20_000), jnp.float32)
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, 1_500))

    def log_ratio(params: Any, x: jax.Array) -> jax.Array:
        return network.apply(params["trunk"], x) @ params["head"]

    def step(carry: Any, key: jax.Array) -> tuple[Any, None]:
        params, state = carry
        k1, k2, k3 = jax.random.split(key, 3)
        batch, x0 = jax.random.choice(k1, real, (256,)), jax.random.normal(k2, (256, 2))

        def loss(params: Any) -> tuple[jax.Array, Any]:
            return objective(
                k3,
                batch,
                x0,
                lambda x: log_ratio(params, x),
                num_steps=num_steps,
                step_size=step_size,
                noise_scale=0,
            )

        updates, state = optimizer.update(jax.grad(loss, has_aux=True)(params)[0], state)
        return (optax.apply_updates(params, updates), state), None

    key = jax.random.key(seed)
    trunk = network.init(key, real[:2])
    params = {"trunk": trunk, "head": jnp.zeros(network.apply(trunk, real[:2]).shape[1])}
    keys = jax.random.split(jax.random.fold_in(key, 1), 1_500)
    (params, _), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, keys))(
        (params, optimizer.init(params))
    )
    return lambda x: log_ratio(params, x)


def flow_densities(
    x: jax.Array, log_ratio: Callable[..., jax.Array], step_size: float, num_steps: int
) -> LogDensity:
    """Returns densities at `x [B, 2]` of the flow along `log_ratio` from N(0, I)."""

    def normal(x: jax.Array) -> jax.Array:
        return jnp.sum(jax.scipy.stats.norm.logpdf(x), axis=-1)

    @jax.jit
    def densities(x: jax.Array) -> LogDensity:
        return fdrl.log_density(
            x, log_ratio, log_ratio, normal, num_steps=num_steps, step_size=step_size
        )

    found: LogDensity = densities(x)
    return found


def density(args: argparse.Namespace) -> Iterator[Row]:
    """Densities from a flow of total length 2 without noise: integral 1, KL to the truth."""
    axis = np.linspace(-5.0, 5.0, 101)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    cell = (axis[1] - axis[0]) ** 2
    for seed in range(args.seeds):
        fresh = MODES.sample(np.random.default_rng(100 + seed), 2_000)
        truth = MODES.log_density(fresh)
        points = jnp.asarray(np.concatenate([grid, fresh]), jnp.float32)
        for num_steps in (40, 20, 5):
            step_size = 2.0 / num_steps
            log_ratio, seconds = timed(smooth_estimator, seed, step_size, num_steps)
            result = flow_densities(points, log_ratio, step_size, num_steps)
            row: Row = {"step size": step_size, "steps": num_steps, "seed": seed}
            for name, log_p in (("flowed", result.flowed), ("data", result.data)):
                log_p = np.asarray(log_p, np.float64)
                row[f"integral, {name}"] = float(np.exp(log_p[: len(grid)]).sum() * cell)
                row[f"KL, {name}"] = float(np.mean(truth - log_p[len(grid) :]))
            largest = np.asarray(result.largest_eigenvalue)[len(grid) :]
            row |= {
                "largest eigenvalue": float(largest.max()),
                "share above 1": float(np.mean(largest >= 1.0)),
                "largest residual": float(np.asarray(result.residual)[len(grid) :].max()),
                "seconds": seconds,
            }
            yield row


TABLES = {
    table.__name__: table
    for table in (information, small, chasm, mixtures, shift, outliers, density)
}
DEFAULT_NUM = {"information": 100_000, "small": 5_000, "chasm": 10_000, "mixtures": 20_000}


def markdown(rows: list[Row]) -> str:
    """Returns rows as a table."""
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    for row in rows:
        cells = [f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row.values()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> list[Row]:
    """Runs one table, prints it row by row, and writes it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--num", type=int, help="samples")
    parser.add_argument("--dims", type=int, nargs="+", default=[40, 80, 160, 320], choices=STEPS)
    parser.add_argument("--steps", type=int, help="training steps in the table 'information'")
    parser.add_argument("--methods", nargs="+", help="only these methods, by their names")
    parser.add_argument("--chasms", nargs="+", choices=CHASMS, help="only these, for 'chasm'")
    parser.add_argument("--mnist", type=Path, help="zip of class folders, for 'outliers'")
    parser.add_argument("--out", type=Path, default=Path("runs/ratios"))
    args = parser.parse_args(argv)
    if args.methods and args.table in ("outliers", "density"):
        parser.error(f"{args.table} has no --methods")
    if args.num and args.table not in DEFAULT_NUM:
        parser.error(f"{args.table} has no --num")
    args.num = args.num or DEFAULT_NUM.get(args.table, 0)
    rows = []
    for row in TABLES[args.table](args):
        rows.append(row)
        print(json.dumps(row), flush=True)
    print(markdown(rows))
    args.out.mkdir(parents=True, exist_ok=True)
    record = {"options": vars(args), "jax": jax.__version__, "rows": rows}
    (args.out / f"{args.table}.json").write_text(json.dumps(record, indent=2, default=str) + "\n")
    return rows


if __name__ == "__main__":
    main()

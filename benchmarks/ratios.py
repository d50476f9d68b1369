"""Density ratios on public tests, next to other methods on the same rows, on one CPU core.

    python -m benchmarks.ratios information --seeds 3 --sizes 5000 10000
    python -m benchmarks.ratios far
    python -m benchmarks.ratios power
    python -m benchmarks.ratios weights --seeds 10
    python -m benchmarks.ratios inference
    python -m benchmarks.ratios outliers --mnist mnist.zip

Each command prints its rows as they come, and appends them to `runs/ratios/TABLE.jsonl`. Rows that
are there already are not computed again. `information`, `weights` and `inference` first install
the tests, at the versions of the figures, in environments of their own.
"""

import argparse
import json
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats
from scipy.spatial.distance import cdist
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.model_selection import cross_val_score
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

import fdrl_jax as fdrl
from fdrl_jax.ratio import DensityRatio, Options, Trunk

Row = dict[str, Any]


class Table:
    """Rows of a table, printed and appended to a file as they come."""

    def __init__(self, file: Path) -> None:
        self.file = file
        lines = file.read_text().splitlines() if file.exists() else []
        self.rows: list[Row] = [json.loads(line) for line in lines]

    def has(self, task: str, seed: int | None = None) -> bool:
        """Returns whether the table has a row of a task already."""
        return (task, seed) in {(row["task"], row["seed"]) for row in self.rows}

    def add(
        self, task: str, method: str, seed: int | None, metric: str, value: float, **more: Any
    ) -> None:
        """Adds a row."""
        row: Row = {"task": task, "method": method, "seed": seed, "metric": metric}
        self.rows.append(row | {"value": float(value)} | more)
        print(line := json.dumps(self.rows[-1]), flush=True)
        with self.file.open("a") as file:
            print(line, file=file)


PACKAGES = {
    "information": ["benchmark-mi==0.1.3", "jax==0.4.26", "jaxlib==0.4.26", "scipy<1.13"],
    "weights": ["causaldata==0.1.5", "pandas"],
}
# Runs in the environment of benchmark-mi: draws the rows, and runs its estimators on them.
DRAW = """
import json, sys, time, numpy as np, bmi.estimators as e
from bmi.benchmark import BENCHMARK_TASKS
if len(sys.argv) == 2:
    sys.exit(print(*BENCHMARK_TASKS))
name, size, seed, num_rivals, out = sys.argv[2:]
makers = {"KSG": lambda: e.KSGEnsembleFirstEstimator(neighborhoods=(10,)),
          "CCA": e.CCAMutualInformationEstimator, "MINE": e.MINEEstimator,
          "InfoNCE": e.InfoNCEEstimator, "NWJ": e.NWJEstimator}
task, found = BENCHMARK_TASKS[name], {}
x, y = (np.asarray(part) for part in task.sample(int(size), int(seed)))
for rival in list(makers)[: int(num_rivals)]:
    start = time.process_time()
    found[rival] = float(makers[rival]().estimate(x, y)), time.process_time() - start
np.savez(out, x=x, y=y, truth=task.mutual_information, rivals=json.dumps(found))
"""
# The treated of the experiment, a, and the controls of the CPS, b.
LALONDE = """
import sys, causaldata, numpy as np
a, b = (getattr(causaldata, f"{n}_mixtape").load_pandas().data for n in ("nsw", "cps"))
found = {}
for name, people in (("a", a[a.treat == 1]), ("b", b[b.treat == 0])):
    raw = people["age educ black hisp marr nodegree re74 re75".split()].to_numpy(float)
    found[f"raw columns, {name}"] = raw
    logs = [f(column) for column in raw.T[6:] for f in (np.log1p, lambda v: v == 0)]
    found[f"log earnings, {name}"] = np.column_stack([raw[:, :6], *logs])
    found[f"outcome, {name}"] = people["re78"].to_numpy(float)
np.savez(sys.argv[1], **found)
"""


def environment(args: argparse.Namespace, table: str) -> Path:
    """Returns the Python of an environment with the packages of a table; makes it if needed."""
    folder = args.environment / table
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *PACKAGES[table]], check=True)
        (folder / "complete").touch()
    return python


def timed(function: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[Any, float]:
    """Returns the result and the CPU time in seconds, compilation included."""
    start = time.process_time()
    result = jax.block_until_ready(function(*arguments, **options))
    return result, time.process_time() - start


def information(args: argparse.Namespace, table: Table) -> None:
    """Mutual information: the 40 tasks of benchmark-mi (Czyz et al., NeurIPS 2023)."""
    draw = [environment(args, "information"), "-c", DRAW, args.environment]
    names = subprocess.run(draw, check=True, capture_output=True, text=True).stdout.split()
    for size, seed in product(args.sizes or (5_000, 10_000), range(args.seeds)):
        for name in args.tasks or names:
            task = f"{name}, {size:,} rows"
            if table.has(task, seed):
                continue
            file = args.environment / f"{name},{size},{seed},{args.rivals}.npz"
            if not file.exists():
                options = [name, str(size), str(seed), str(args.rivals), file]
                subprocess.run([*draw, *options], check=True)
            with np.load(file) as found:
                x, y, real = found["x"], found["y"], float(found["truth"])
                others = json.loads(str(found["rivals"]))
            estimate, seconds = timed(fdrl.mutual_information, jax.random.key(seed), x, y)
            table.add(
                *(task, "mutual_information", seed, "nats", estimate.value),
                real=real,
                standard_error=estimate.standard_error,
                trusted=estimate.ratio.check().trusted,
                network=estimate.ratio.heads is not None,
                ranks=estimate.ratio.columns.knots is not None,
                waymarks=len(estimate.ratio.waymarks) - 2,
                seconds=seconds,
            )
            for rival, (value, seconds) in others.items():
                table.add(task, rival, seed, "nats", value, real=real, seconds=seconds)


def far(args: argparse.Namespace, table: Table) -> None:
    """Pairs of correlated Gaussians with d / 4 nats in d dimensions (Rhodes et al., 2020)."""
    steps = {40: 1_000, 80: 1_500, 160: 3_000, 320: 4_000}
    rho = (1.0 - np.exp(-1.0)) ** 0.5  # Half a nat per pair.
    for dim, seed in product(args.columns or steps, range(args.seeds)):
        task = f"Gaussians, {dim} dimensions"
        if table.has(task, seed):
            continue
        rng = np.random.default_rng(seed)
        x, noise = rng.standard_normal((2, 100_000, dim // 2), np.float32)
        estimate, seconds = timed(
            fdrl.mutual_information,
            *(jax.random.key(seed), x, rho * x + (1.0 - rho**2) ** 0.5 * noise),
            network=Trunk((min(4 * dim, 1024),)),
            num_waymarks=7,
            options=Options(num_steps=steps[dim]),
        )
        method = "mutual_information, 7 waymarks"
        table.add(task, method, seed, "nats", estimate.value, real=dim / 4, seconds=seconds)


Draw = Callable[[np.random.Generator, int, int], tuple[np.ndarray, np.ndarray]]


def _pair(top: Callable[..., np.ndarray], bottom: Callable[..., np.ndarray]) -> Draw:
    return lambda rng, n, d: (top(rng, (n, d)), bottom(rng, (n, d)))


def _normal(shift: float, scale: float = 1.0) -> Draw:
    return _pair(lambda r, s: r.normal(shift, scale, s), lambda r, s: r.normal(0.0, 1.0, s))


def _levels(*shares: float) -> Callable[..., np.ndarray]:
    return lambda rng, shape: rng.choice(3, shape, p=shares)


def _zero(x: np.ndarray) -> np.ndarray:
    zeros: np.ndarray = 0.0 * x.sum(1)
    return zeros


POWER: dict[str, tuple[Draw, Callable[[np.ndarray], np.ndarray]]] = {
    "equal": (_normal(0.0), _zero),
    "equal, 3 levels": (_pair(*2 * [lambda r, s: r.integers(0, 3, s)]), _zero),
    "equal, Cauchy": (_pair(*2 * [lambda r, s: r.standard_cauchy(s)]), _zero),
    "shift 0.5": (_normal(0.5), lambda x: (0.5 * x - 0.125).sum(1)),
    "shift 0.3": (_normal(0.3), lambda x: (0.3 * x - 0.045).sum(1)),
    "scale 1.3": (_normal(0.0, 1.3), lambda x: (x**2 / 2 * (1 - 1.3**-2) - np.log(1.3)).sum(1)),
    "Student-t, 2 degrees, shift 0.5": (
        _pair(lambda r, s: r.standard_t(2, s) + 0.5, lambda r, s: r.standard_t(2, s)),
        lambda x: (stats.t.logpdf(x, 2, 0.5) - stats.t.logpdf(x, 2)).sum(1),
    ),
    "lognormal, shift 0.5": (
        _pair(lambda r, s: np.exp(r.normal(0.5, 1, s)), lambda r, s: np.exp(r.normal(0, 1, s))),
        lambda x: (0.5 * np.log(x) - 0.125).sum(1),
    ),
    "3 levels, .5/.3/.2 over .3/.4/.3": (
        _pair(_levels(0.5, 0.3, 0.2), _levels(0.3, 0.4, 0.3)),
        lambda x: np.log(np.array([5 / 3, 3 / 4, 2 / 3]))[np.int64(x)].sum(1),
    ),
}


def t_test(rng: np.random.Generator, top: np.ndarray, bottom: np.ndarray) -> float:
    """Returns the smallest p-value of the columns, corrected for their number."""
    p = stats.ttest_ind(top, bottom, equal_var=False).pvalue
    return float(min(np.min(p) * top.shape[1], 1.0))


def mmd(rng: np.random.Generator, top: np.ndarray, bottom: np.ndarray) -> float:
    """Returns the p-value of MMD (Gaussian kernel, median distance) by 200 permutations."""
    x = np.concatenate([top, bottom]).astype(float)
    square = cdist(x, x, "sqeuclidean")
    kernel = np.exp(-square / np.median(square[square > 0]))
    labels = np.repeat([1.0 / len(top), -1.0 / len(bottom)], [len(top), len(bottom)])
    draws = np.stack([labels, *(rng.permutation(labels) for _ in range(200))])
    values = np.sum((draws @ kernel) * draws, axis=1)
    return float(np.mean(values >= values[0] - 1e-12))


def classifier_test(rng: np.random.Generator, top: np.ndarray, bottom: np.ndarray) -> float:
    """Returns the p-value of a classifier's accuracy on the other half (Lopez-Paz, Oquab 2017)."""
    model = make_pipeline(
        StandardScaler(), PolynomialFeatures(2), LogisticRegression(C=0.1, max_iter=500)
    )
    x, y = np.concatenate([top, bottom]), np.repeat([1, 0], [len(top), len(bottom)])
    order = rng.permutation(len(x))
    train, test = order[::2], order[1::2]
    right = int(np.sum(model.fit(x[train], y[train]).predict(x[test]) == y[test]))
    return float(stats.binomtest(right, len(test), 0.5, alternative="greater").pvalue)


def power(args: argparse.Namespace, table: Table) -> None:
    """Shares of trials in which a test at 5% finds a difference, and the error of log r."""
    rivals = {"t-test": t_test, "MMD": mmd, "classifier test": classifier_test}
    sizes, columns = args.sizes or (200, 50, 1_000), args.columns or (1, 5, 20)
    for num, name, dim in product(sizes, args.tasks or POWER, columns):
        task = f"{name}, {num} rows, {dim} columns"
        if table.has(task):
            continue
        draw, truth = POWER[name]
        trials = max(args.trials * 200 // max(num, 200), args.trials // 5)
        found: dict[str, list[float]] = {method: [] for method in ["fit_ratio", *rivals]}
        errors, trusted = [], 0
        for trial in range(trials):
            rng = np.random.default_rng([trial, num, dim])
            top, bottom = draw(rng, num, dim)
            ratio = fdrl.fit_ratio(jax.random.key(trial), top, bottom)
            fresh = np.concatenate(draw(rng, 1_000, dim))
            real = truth(fresh)
            errors.append([np.abs(ratio.log_ratio(fresh) - real).mean(), np.abs(real).mean()])
            trusted += ratio.check().trusted
            found["fit_ratio"].append(ratio.p_value)
            for rival, test in rivals.items():
                found[rival].append(test(rng, top, bottom))
        ours, one = np.mean(errors, axis=0)
        more: Row = {"error of log r": ours, "error of the ratio 1": one}
        more["trusted"] = trusted / trials
        for method, p in found.items():
            share = float(np.mean(np.array(p) <= 0.05))
            table.add(task, method, None, "share found at 5%", share, **more, trials=trials)
            more = {}


def weights(args: argparse.Namespace, table: Table) -> None:
    """LaLonde: the effect of a training from weighted controls; the experiment says 1,794."""
    file = args.environment / "lalonde.npz"
    subprocess.run([environment(args, "weights"), "-c", LALONDE, file], check=True)
    with np.load(file) as found:
        people = dict(found)
    y_top, y_bottom = people["outcome, a"], people["outcome, b"]

    def effect(method: str, seed: int | None, w: np.ndarray, **more: Any) -> None:
        value = y_top.mean() - np.average(y_bottom, weights=w)
        more["effective sample size"] = float(w.sum() ** 2 / np.sum(w**2))
        task, metric = "LaLonde, CPS controls", "effect, dollars"
        table.add(task, method, seed, metric, value, real=1794, **more)

    effect("no weights", None, np.ones(len(y_bottom)))
    for kind in ("raw columns", "log earnings"):
        top, bottom = people[f"{kind}, a"], people[f"{kind}, b"]
        x, y = np.concatenate([top, bottom]), np.repeat([1, 0], [len(top), len(bottom)])
        model = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=2_000))
        log_w = model.fit(x, y).decision_function(bottom)
        effect(f"logistic regression, {kind}", None, np.exp(log_w))
        for seed in range(args.seeds):
            ratio, seconds = timed(fdrl.fit_ratio, jax.random.key(seed), top, bottom)
            w, trusted = np.asarray(ratio.weights(bottom)), ratio.check().trusted
            effect(f"fit_ratio, {kind}", seed, w, seconds=seconds, trusted=trusted)


def two_moons(rng: np.random.Generator, theta: np.ndarray) -> np.ndarray:
    angle = rng.uniform(-np.pi / 2, np.pi / 2, len(theta))
    radius = rng.normal(0.1, 0.01, len(theta))
    moon = np.stack([radius * np.cos(angle) + 0.25, radius * np.sin(angle)], axis=1)
    a, b = theta.T
    return moon + np.stack([-np.abs(a + b) / 2**0.5, (b - a) / 2**0.5], axis=1)


def gaussian_mixture(rng: np.random.Generator, theta: np.ndarray) -> np.ndarray:
    std = rng.choice([1.0, 0.1], len(theta))[:, None]
    return theta + std * rng.normal(size=theta.shape)


def slcp(rng: np.random.Generator, theta: np.ndarray) -> np.ndarray:
    s1, s2, rho = theta[:, 2] ** 2, theta[:, 3] ** 2, np.tanh(theta[:, 4])
    z = rng.normal(size=(len(theta), 4, 2))
    first = theta[:, None, 0] + s1[:, None] * z[..., 0]
    mixed = rho[:, None] * z[..., 0] + np.sqrt(1 - rho[:, None] ** 2) * z[..., 1]
    return np.stack([first, theta[:, None, 1] + s2[:, None] * mixed], -1).reshape(len(theta), 8)


def linear(rng: np.random.Generator, theta: np.ndarray) -> np.ndarray:
    return theta + 0.1**0.5 * rng.normal(size=theta.shape)


# Simulator, dimension, half-width of the uniform prior (None: N(0, 0.1)), published C2ST of NRE.
SIMULATORS = {
    "two_moons": (two_moons, 2, 1.0, 0.76),
    "gaussian_mixture": (gaussian_mixture, 2, 10.0, 0.75),
    "gaussian_linear": (linear, 10, None, 0.56),
    "slcp": (slcp, 5, 3.0, 0.95),
}


def posterior(
    key: jax.Array, ratio: DensityRatio, x: np.ndarray, candidates: np.ndarray, width: float | None
) -> np.ndarray:
    """Returns 10,000 samples of the posterior: prior samples resampled by `r`, then moved."""
    log_ratio = jax.jit(
        lambda theta: ratio.log_ratio(jnp.concatenate([theta, jnp.tile(x, (len(theta), 1))], 1))
    )

    def log_density(theta: jax.Array) -> jax.Array:
        if width is None:
            return log_ratio(theta) - jnp.sum(theta**2, axis=1) / 0.2
        return jnp.where(jnp.all(jnp.abs(theta) < width, axis=1), log_ratio(theta), -jnp.inf)

    log_w = np.concatenate([np.asarray(log_ratio(part)) for part in np.split(candidates, 50)])
    k1, key = jax.random.split(key)
    weight = np.cumsum(np.exp(np.float64(log_w) - log_w.max()))
    chosen = np.searchsorted(weight, weight[-1] * jax.random.uniform(k1, (10_000,)))
    theta = jnp.asarray(candidates)[np.minimum(chosen, len(weight) - 1)]
    steps = 10.0 ** jnp.linspace(0.0, -1.5, 100)
    spread = jnp.std(theta, axis=0)

    def move(carry: tuple[jax.Array, jax.Array], inputs: Any) -> tuple[Any, None]:
        theta, value = carry
        key, size = inputs
        k1, k2, k3 = jax.random.split(key, 3)
        # Differences of other samples follow the shape of the posterior.
        order = jax.random.permutation(k1, len(theta))
        jump = theta[order] - theta[jnp.roll(order, 1)]
        noise = 0.01 * spread * jax.random.normal(k2, theta.shape)
        new = theta + size * (jump / theta.shape[1] ** 0.5 + noise)
        of_new = log_density(new)
        accept = jnp.log(jax.random.uniform(k3, value.shape)) < of_new - value
        return (jnp.where(accept[:, None], new, theta), jnp.where(accept, of_new, value)), None

    keys = jax.random.split(key, len(steps))
    (theta, _), _ = jax.jit(lambda c: jax.lax.scan(move, c, (keys, steps)))(
        (theta, log_density(theta))
    )
    return np.asarray(theta)


def c2st(samples: np.ndarray, reference: np.ndarray) -> float:
    """Returns the accuracy of a classifier between both, as sbibm computes it; 0.5 is perfect."""
    mean, std = samples.mean(0), samples.std(0)
    x = (np.concatenate([samples, reference]) - mean) / std
    y = np.repeat([0, 1], [len(samples), len(reference)])
    hidden = 10 * x.shape[1]
    model = MLPClassifier((hidden, hidden), max_iter=1_000, random_state=1)
    order = np.random.default_rng(1).permutation(len(x))
    return float(cross_val_score(model, x[order], y[order], cv=5).mean())


def inference(args: argparse.Namespace, table: Table) -> None:
    """Posteriors of simulators from 10,000 simulations, against the references of sbibm."""
    folder = args.environment / "sbibm"
    if not folder.exists():
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "sbibm==1.1.0"]
        subprocess.run([*pip, "-d", args.environment], check=True)
        with zipfile.ZipFile(next(args.environment.glob("sbibm-*.whl"))) as wheel:
            wheel.extractall(folder)
    for name, seed in product(args.tasks or SIMULATORS, range(args.seeds)):
        simulate, size, width, published = SIMULATORS[name]
        task = f"{name}, 10,000 simulations"
        if table.has(task, seed):
            continue
        rng = np.random.default_rng(seed)

        def prior(num: int, rng: Any = rng, size: Any = size, width: Any = width) -> np.ndarray:
            if width is None:
                return np.float32(rng.normal(0.0, 0.1**0.5, (num, size)))
            return np.float32(rng.uniform(-width, width, (num, size)))

        theta = prior(10_000)
        found, seconds = timed(
            *(fdrl.mutual_information, jax.random.key(seed), theta, simulate(rng, theta)),
            num_waymarks=0,
        )
        values = []
        for number in range(1, args.observations + 1):
            files = folder / "sbibm/tasks" / name / "files" / f"num_observation_{number}"
            x = np.loadtxt(files / "observation.csv", delimiter=",", skiprows=1)
            packed = files / "reference_posterior_samples.csv.bz2"
            reference = np.loadtxt(packed, delimiter=",", skiprows=1)
            samples = posterior(jax.random.key(number), found.ratio, x, prior(500_000), width)
            values.append(c2st(samples, reference))
        more = {"published NRE": published, "of observations": values, "nats": found.value}
        method = "mutual_information(theta, x).ratio"
        table.add(task, method, seed, "C2ST", np.mean(values), **more, seconds=seconds)


def outliers(args: argparse.Namespace, table: Table) -> None:
    """A digit is missing in training: average precision of `-log r` for it in the test set.

    The numerator is the inliers of training and the denominator the unlabelled test set (Hido et
    al. 2011).
    """
    from PIL import Image

    with zipfile.ZipFile(args.mnist) as file:
        names = sorted(n for n in file.namelist() if n.endswith((".png", ".jpg", ".jpeg", ".webp")))
        labels = np.array([int(name.split("/")[-2]) for name in names])
        small = [Image.open(file.open(n)).convert("L").resize((14, 14)) for n in names]
    images = np.stack([np.asarray(i, np.float32) for i in small]).reshape(len(names), -1) / 255.0
    for seed, digit in product(range(args.seeds), (1, 4, 5, 7, 9)):
        if table.has(task := f"MNIST without {digit}", seed):
            continue
        rng = np.random.default_rng(seed)
        noisy = images + rng.uniform(0.0, 1.0 / 16.0, images.shape)
        in_training = rng.random(len(images)) < 0.5
        inliers = noisy[in_training & (labels != digit)]
        test, is_outlier = noisy[~in_training], labels[~in_training] == digit
        key = jax.random.key(seed)
        ratio, seconds = timed(fdrl.fit_ratio, key, inliers, test, num_waymarks=0)
        scores = ratio.log_ratio(test), ratio.scores[1].log_ratio
        value, out = (float(average_precision_score(is_outlier, -s)) for s in scores)
        table.add(
            *(task, "fit_ratio, unlabelled test set", seed, "average precision", value),
            **{"out of fold": out, "share of outliers": float(is_outlier.mean())},
            seconds=seconds,
        )


TABLES = {t.__name__: t for t in (information, far, power, weights, inference, outliers)}


def main(argv: list[str] | None = None) -> list[Row]:
    """Runs one table, prints it row by row, and writes it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--rivals", type=int, default=5, help="of KSG, CCA, MINE, InfoNCE, NWJ")
    parser.add_argument("--sizes", type=int, nargs="+", help="rows of each set")
    parser.add_argument("--columns", type=int, nargs="+", help="of each set")
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--tasks", nargs="+", help="only these")
    parser.add_argument("--observations", type=int, default=10)
    parser.add_argument("--mnist", type=Path, help="zip of class folders, for 'outliers'")
    parser.add_argument("--environment", type=Path, default=Path("runs/ratios/environment"))
    parser.add_argument("--out", type=Path, default=Path("runs/ratios"))
    args = parser.parse_args(argv)
    if args.table == "outliers" and args.mnist is None:
        parser.error("outliers needs --mnist")
    for folder in (args.out, args.environment):
        folder.mkdir(parents=True, exist_ok=True)
    table = Table(args.out / f"{args.table}.jsonl")
    TABLES[args.table](args, table)
    return table.rows


if __name__ == "__main__":
    main()

"""Density ratios on public tests, next to other methods on the same rows, on one CPU core.

Command: python -m benchmarks.ratios TABLE, such as `information` or `weights --seeds 10`

It prints rows as they come and appends them to `runs/ratios/TABLE.jsonl`; rows that are there are
not computed again. Public tests are installed, at their versions, in environments of their own.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from itertools import product
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy import stats
from scipy.spatial.distance import cdist
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.model_selection import KFold, cross_val_score
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

import fdrl_jax as fdrl
from experiments.data.decode import Transform, decode
from experiments.data.formats import Tree

Array, Rng = np.ndarray, np.random.Generator
Row = dict[str, Any]
IDENTITY = itemgetter("task", "method", "seed")  # Of a row.


class Table(NamedTuple):
    """What a table measures, on which tasks."""

    metric: str
    task: str  # With a place for each detail.
    method: str  # The same; rivals name themselves.
    measure: Callable[..., Iterator[Row]]  # By arguments of the program, seed and details.
    details: dict[str, Any]  # What options choose, and the choices without them.
    seeded: bool = True  # Whether there is a row per seed.


PACKAGES = {
    "information": ["benchmark-mi==0.1.3", "jax==0.4.26", "jaxlib==0.4.26", "scipy<1.13"],
    "weights": ["causaldata==0.1.5", "pandas"],
    "inference": ["--no-deps", "sbibm==1.1.0"],
}
# Prints the tasks of benchmark-mi, or draws the rows of one and runs its estimators on them.
DRAW = """
import json, sys, time, numpy as np, bmi.estimators as e
from bmi.benchmark import BENCHMARK_TASKS
if len(sys.argv) == 1:
    sys.exit(print(*BENCHMARK_TASKS))
name, size, seed, num_rivals, out = sys.argv[1:]
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
found = {}
for name, data, treated in (("a", "nsw", 1), ("b", "cps", 0)):
    people = getattr(causaldata, f"{data}_mixtape").load_pandas().data.query(f"treat == {treated}")
    raw = people["age educ black hisp marr nodegree re74 re75".split()].to_numpy(float)
    found[f"raw columns, {name}"] = raw
    logs = [f(column) for column in raw.T[6:] for f in (np.log1p, lambda v: v == 0)]
    found[f"log earnings, {name}"] = np.column_stack([raw[:, :6], *logs])
    found[f"outcome, {name}"] = people["re78"].to_numpy(float)
np.savez(sys.argv[1], **found)
"""
# Prints the folder of a package that cannot be imported without its dependencies.
FOLDER = "import importlib.util as u; print(*u.find_spec('sbibm').submodule_search_locations)"


def run(args: argparse.Namespace, table: str, script: str, *arguments: Any) -> str:
    """Returns the output of a script in an environment with the packages of a table."""
    folder = args.environment / table
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *PACKAGES[table]], check=True)
        (folder / "complete").touch()
    command = [python, "-c", script, *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def timed(function: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[Any, float]:
    """Returns the result and the CPU time in seconds, compilation included."""
    start = time.process_time()
    result = jax.block_until_ready(function(*arguments, **options))
    return result, time.process_time() - start


def information(args: argparse.Namespace, seed: int, name: str, size: int) -> Iterator[Row]:
    """Mutual information: the 40 tasks of benchmark-mi (Czyz et al., NeurIPS 2023)."""
    file = args.environment / f"{name},{size},{seed},{args.rivals}.npz"
    if not file.exists():
        run(args, "information", DRAW, name, size, seed, args.rivals, file)
    with np.load(file) as found:
        x, y, real = found["x"], found["y"], float(found["truth"])
        rivals = json.loads(str(found["rivals"]))
    (value, error, ratio), seconds = timed(fdrl.mutual_information, jax.random.key(seed), x, y)
    ours = {"value": value, "real": real, "standard_error": error, "seconds": seconds}
    yield ours | {"trusted": ratio.check().trusted, "waymarks": len(ratio.waymarks) - 2}
    for rival, (value, seconds) in rivals.items():
        yield {"method": rival, "value": value, "real": real, "seconds": seconds}


def far(args: argparse.Namespace, seed: int, dim: int) -> Iterator[Row]:
    """Pairs of correlated Gaussians with d / 4 nats in d dimensions (Rhodes et al., 2020)."""
    rho = (1.0 - np.exp(-1.0)) ** 0.5  # Half a nat per pair.
    x, noise = np.random.default_rng(seed).standard_normal((2, 100_000, dim // 2), np.float32)
    y = rho * x + (1.0 - rho**2) ** 0.5 * noise
    more = {"network": fdrl.ratio.Trunk((min(4 * dim, 1024),)), "num_waymarks": 7}
    more["options"] = fdrl.ratio.Options({40: 1_000, 80: 1_500, 160: 3_000, 320: 4_000}[dim])
    estimate, seconds = timed(fdrl.mutual_information, jax.random.key(seed), x, y, **more)
    yield {"value": estimate.value, "real": dim / 4, "seconds": seconds}


# Distributions of the independent columns of numerator and denominator.
CASES = {
    "equal": (stats.norm(), stats.norm()),
    "equal, 3 levels": (stats.randint(0, 3), stats.randint(0, 3)),
    "equal, Cauchy": (stats.cauchy(), stats.cauchy()),
    "shift 0.5": (stats.norm(0.5), stats.norm()),
    "shift 0.3": (stats.norm(0.3), stats.norm()),
    "scale 1.3": (stats.norm(0.0, 1.3), stats.norm()),
    "Student-t, 2 degrees, shift 0.5": (stats.t(2, 0.5), stats.t(2)),
    "lognormal, shift 0.5": (stats.lognorm(1.0, scale=np.exp(0.5)), stats.lognorm(1.0)),
    "3 levels, .5/.3/.2 over .3/.4/.3": tuple(
        stats.rv_discrete(values=(range(3), p))() for p in ((0.5, 0.3, 0.2), (0.3, 0.4, 0.3))
    ),
}


def true_log_ratio(name: str, x: Array) -> Any:
    """Returns the log-ratio of a case, `x [B, D] -> [B]`."""
    top, bottom = (d.logpdf(x) if hasattr(d, "logpdf") else d.logpmf(x) for d in CASES[name])
    return np.sum(top - bottom, axis=1)


def t_test(rng: Rng, top: Array, bottom: Array) -> float:
    """Returns the smallest p-value of the columns, corrected for their number."""
    p = stats.ttest_ind(top, bottom, equal_var=False).pvalue
    return float(min(np.min(p) * top.shape[1], 1.0))


def mmd(rng: Rng, top: Array, bottom: Array) -> float:
    """Returns the p-value of MMD (Gaussian kernel, median distance) by 200 permutations."""
    x = np.concatenate([top, bottom]).astype(float)
    square = cdist(x, x, "sqeuclidean")
    kernel = np.exp(-square / np.median(square[square > 0]))
    labels = np.repeat([1.0 / len(top), -1.0 / len(bottom)], [len(top), len(bottom)])
    draws = np.stack([labels, *(rng.permutation(labels) for _ in range(200))])
    values = np.sum((draws @ kernel) * draws, axis=1)
    return float(np.mean(values >= values[0] - 1e-12))


def classifier_test(rng: Rng, top: Array, bottom: Array) -> float:
    """Returns the p-value of a classifier's accuracy on the other half (Lopez-Paz, Oquab 2017)."""
    steps = StandardScaler(), PolynomialFeatures(2), LogisticRegression(C=0.1, max_iter=500)
    x, y = np.concatenate([top, bottom]), np.repeat([1, 0], [len(top), len(bottom)])
    order = rng.permutation(len(x))
    train, test = order[::2], order[1::2]
    right = int(np.sum(make_pipeline(*steps).fit(x[train], y[train]).predict(x[test]) == y[test]))
    return float(stats.binomtest(right, len(test), 0.5, alternative="greater").pvalue)


TESTS = {"t-test": t_test, "MMD": mmd, "classifier test": classifier_test}


def power(args: argparse.Namespace, seed: None, num: int, name: str, dim: int) -> Iterator[Row]:
    """Shares of trials in which a test at 5% finds a difference, and the error of log r."""
    trials = max(args.trials * 200 // max(num, 200), args.trials // 5)
    p_values, figures = [], []
    for trial in range(trials):
        rng = np.random.default_rng([trial, num, dim])
        top, bottom = (part.rvs((num, dim), rng) for part in CASES[name])
        ratio = fdrl.fit_ratio(jax.random.key(trial), top, bottom)
        fresh = np.concatenate([part.rvs((1_000, dim), rng) for part in CASES[name]])
        real = true_log_ratio(name, fresh)
        errors = np.abs(ratio.log_ratio(fresh) - real).mean(), np.abs(real).mean()
        figures.append([*errors, ratio.check().trusted])
        p_values.append([ratio.p_value, *(test(rng, top, bottom) for test in TESTS.values())])
    names = "error of log r", "error of the ratio 1", "trusted"
    ours = dict(zip(names, np.mean(figures, axis=0).tolist(), strict=True))
    shares = np.mean(np.array(p_values) <= 0.05, axis=0).tolist()
    yield {"value": shares[0], **ours, "trials": trials}
    for rival, share in zip(TESTS, shares[1:], strict=True):
        yield {"method": rival, "value": share, "trials": trials}


def weights(args: argparse.Namespace, seed: int, kind: str) -> Iterator[Row]:
    """LaLonde: the effect of a training from weighted controls; the experiment says 1,794."""
    file = args.environment / "weights.npz"
    if not file.exists():
        run(args, "weights", LALONDE, file)
    with np.load(file) as found:
        top, bottom, y_top, y_bottom = (found[f"{k}, {n}"] for k in (kind, "outcome") for n in "ab")

    def effect(w: Array) -> Row:
        value = float(y_top.mean() - np.average(y_bottom, weights=w))
        size = float(w.sum() ** 2 / np.sum(w**2))
        return {"value": value, "real": 1794, "effective sample size": size}

    ratio, seconds = timed(fdrl.fit_ratio, jax.random.key(seed), top, bottom)
    ours = effect(np.asarray(ratio.weights(bottom)))
    yield ours | {"seconds": seconds, "trusted": ratio.check().trusted}
    x, y = np.concatenate([top, bottom]), np.repeat([1, 0], [len(top), len(bottom)])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=2_000))
    odds = np.exp(model.fit(x, y).decision_function(bottom))
    yield {"method": f"logistic regression, {kind}", "seed": None} | effect(odds)
    yield {"method": "no weights", "seed": None} | effect(np.ones(len(bottom)))


def two_moons(rng: Rng, theta: Array) -> Array:
    angle = rng.uniform(-np.pi / 2, np.pi / 2, len(theta))
    radius = rng.normal(0.1, 0.01, len(theta))
    moon = np.stack([radius * np.cos(angle) + 0.25, radius * np.sin(angle)], axis=1)
    a, b = theta.T
    return moon + np.stack([-np.abs(a + b) / 2**0.5, (b - a) / 2**0.5], axis=1)


def gaussian_mixture(rng: Rng, theta: Array) -> Array:
    return rng.normal(theta, rng.choice([1.0, 0.1], (len(theta), 1)))


def slcp(rng: Rng, theta: Array) -> Array:
    s1, s2, rho = theta[:, 2] ** 2, theta[:, 3] ** 2, np.tanh(theta[:, 4])
    z = rng.normal(size=(len(theta), 4, 2))
    first = theta[:, None, 0] + s1[:, None] * z[..., 0]
    mixed = rho[:, None] * z[..., 0] + np.sqrt(1 - rho[:, None] ** 2) * z[..., 1]
    return np.stack([first, theta[:, None, 1] + s2[:, None] * mixed], -1).reshape(len(theta), 8)


# Simulator, dimension, prior of each parameter, published C2ST of NRE.
SIMULATORS = {
    "two_moons": (two_moons, 2, stats.uniform(-1, 2), 0.76),
    "gaussian_mixture": (gaussian_mixture, 2, stats.uniform(-10, 20), 0.75),
    "gaussian_linear": (lambda rng, x: rng.normal(x, 0.1**0.5), 10, stats.norm(0, 0.1**0.5), 0.56),
    "slcp": (slcp, 5, stats.uniform(-3, 6), 0.95),
}


def posterior(rng: Rng, ratio: fdrl.ratio.DensityRatio, x: Array, prior: Any, size: int) -> Array:
    """Returns 10,000 samples of the posterior: prior samples resampled by `r`, then moved."""

    def log_ratio(theta: Array) -> Array:
        return np.asarray(ratio.log_ratio(np.c_[theta, np.tile(x, (len(theta), 1))]), float)

    candidates = prior.rvs((500_000, size), rng)
    value = log_ratio(candidates)
    weight = np.exp(value - value.max())
    chosen = rng.choice(len(weight), 10_000, p=weight / weight.sum())
    theta, value = candidates[chosen], value[chosen] + prior.logpdf(candidates[chosen]).sum(1)
    spread = theta.std(axis=0)
    for scale in 10.0 ** np.linspace(0.0, -1.5, 100):
        # Differences of other samples follow the shape of the posterior.
        order = rng.permutation(len(theta))
        jump = (theta[order] - theta[np.roll(order, 1)]) / size**0.5
        new = theta + scale * (jump + 0.01 * spread * rng.normal(size=theta.shape))
        of_new = log_ratio(new) + prior.logpdf(new).sum(1)
        accept = np.log(rng.random(len(theta))) < of_new - value
        theta[accept], value[accept] = new[accept], of_new[accept]
    return theta


def c2st(samples: Array, reference: Array) -> float:
    """Returns the accuracy of a classifier between both, as sbibm computes it; 0.5 is perfect."""
    x = (np.concatenate([samples, reference]) - samples.mean(0)) / samples.std(0)
    y = np.repeat([0, 1], [len(samples), len(reference)])
    model = MLPClassifier(2 * (10 * x.shape[1],), max_iter=1_000, random_state=1)
    return float(cross_val_score(model, x, y, cv=KFold(5, shuffle=True, random_state=1)).mean())


def inference(args: argparse.Namespace, seed: int, name: str) -> Iterator[Row]:
    """Posteriors of simulators from 10,000 simulations, against the references of sbibm."""
    tasks = Path(run(args, "inference", FOLDER).strip()) / "tasks"
    files = "observation.csv", "reference_posterior_samples.csv.bz2"
    simulate, size, prior, published = SIMULATORS[name]
    rng = np.random.default_rng(seed)
    theta = prior.rvs((10_000, size), rng)
    x, key = simulate(rng, theta), jax.random.key(seed)
    # Posteriors are narrow: a larger network, and more steps.
    more = {"network": fdrl.ratio.Trunk((256, 256, 256), squares=True), "num_waymarks": 0}
    more["options"] = fdrl.ratio.Options(6_000, learning_rate=2e-3)
    found, seconds = timed(fdrl.mutual_information, key, theta, x, **more)
    values = []
    for number in range(1, args.observations + 1):
        folder = tasks / name / "files" / f"num_observation_{number}"
        x, reference = (np.loadtxt(folder / n, delimiter=",", skiprows=1) for n in files)
        values.append(c2st(posterior(rng, found.ratio, x, prior, size), reference))
    ours = {"value": float(np.mean(values)), "published NRE": published, "of observations": values}
    yield ours | {"nats": found.value, "seconds": seconds}


@cache
def digits(file: Path) -> tuple[Array, Array]:
    """Returns images of 14 x 14, [N, 196], and labels of a zip of class folders."""
    records, small = Tree(str(file)).records(), Transform(image_size=14, channels=1)
    images = np.stack([decode(records.read(i), small) for i in range(len(records))])
    return images.reshape(len(images), -1) / 255.0, np.asarray(records.labels)


def outliers(args: argparse.Namespace, seed: int, digit: int) -> Iterator[Row]:
    """A digit is missing in training: average precision of `-log r` for it (Hido et al. 2011)."""
    images, labels = digits(args.mnist)
    rng = np.random.default_rng(seed)
    noisy = images + rng.uniform(0.0, 1.0 / 16.0, images.shape)
    in_training = rng.random(len(images)) < 0.5
    inliers = noisy[in_training & (labels != int(digit))]
    test, is_outlier = noisy[~in_training], labels[~in_training] == int(digit)
    ratio, seconds = timed(fdrl.fit_ratio, jax.random.key(seed), inliers, test, num_waymarks=0)
    scores = ratio.log_ratio(test), ratio.scores[1].log_ratio
    value, out = (float(average_precision_score(is_outlier, -s)) for s in scores)
    ours = {"value": value, "out of fold": out, "share of outliers": float(is_outlier.mean())}
    yield ours | {"seconds": seconds}


TABLES = {
    "information": Table(
        *("nats", "{}, {:,} rows", "mutual_information", information),
        {"tasks": lambda args: run(args, "information", DRAW).split(), "sizes": (5_000, 10_000)},
    ),
    "far": Table(
        *("nats", "Gaussians, {} dimensions", "mutual_information, 7 waymarks", far),
        {"columns": (40, 80, 160, 320)},
    ),
    "power": Table(
        *("share found at 5%", "{1}, {0} rows, {2} columns", "fit_ratio", power),
        {"sizes": (200, 50, 1_000), "tasks": CASES, "columns": (1, 5, 20)},
        seeded=False,
    ),
    "weights": Table(
        *("effect, dollars", "LaLonde, CPS controls", "fit_ratio, {}", weights),
        {"tasks": ("raw columns", "log earnings")},
    ),
    "inference": Table(
        *("C2ST", "{}, 10,000 simulations", "mutual_information(theta, x).ratio", inference),
        {"tasks": SIMULATORS},
    ),
    "outliers": Table(
        *("average precision", "MNIST without {}", "fit_ratio, unlabelled test set", outliers),
        {"tasks": (1, 4, 5, 7, 9)},
    ),
}


def main(argv: list[str] | None = None) -> list[Row]:
    """Runs one table, prints it row by row, and writes it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", choices=TABLES)
    for name, default in {"seeds": 1, "trials": 200, "observations": 10, "rivals": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    for name in ("sizes", "columns"):
        parser.add_argument(f"--{name}", type=int, nargs="+", help="of each set")
    parser.add_argument("--tasks", nargs="+", help="only these")
    parser.add_argument("--mnist", type=Path, default=Path("mnist.zip"), help="class folders")
    parser.add_argument("--environment", type=Path, default=Path("runs/ratios/environment"))
    parser.add_argument("--out", type=Path, default=Path("runs/ratios"))
    args = parser.parse_args(argv)
    for folder in (args.out, args.environment):
        folder.mkdir(parents=True, exist_ok=True)
    table = TABLES[args.table]
    file = args.out / f"{args.table}.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    rows = {IDENTITY(row): row for row in map(json.loads, lines)}
    choices = [getattr(args, name) or default for name, default in table.details.items()]
    choices = [choice(args) if callable(choice) else choice for choice in choices]
    for seed, *details in product(range(args.seeds) if table.seeded else [None], *choices):
        task, method = table.task.format(*details), table.method.format(*details)
        if (task, method, seed) in rows:
            continue
        for figures in table.measure(args, seed, *details):
            row = {"task": task, "method": method, "seed": seed, "metric": table.metric} | figures
            if rows.setdefault(IDENTITY(row), row) is row:
                with file.open("a") as out:
                    print(json.dumps(row), file=out)
                print(json.dumps(row), flush=True)
    return list(rows.values())


if __name__ == "__main__":
    main()

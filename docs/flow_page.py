"""Trains the networks of the page `flow/index.html`, which lets points flow in a browser.

Command: python -m docs.flow_page [--workdir=runs/flow_page]

Cost: 3 min on two CPU cores. Runs that exist in the folder are not trained again.
Score: 99.9% of points end within 4 sigma of the swiss roll and 99.5% within 4 sigma of one of the
  eight Gaussians. The Fréchet distance of digits, in the decision space of an SVM trained on real
  digits, is 0.22 (prior 1.29); seed 0.
"""

import argparse
import base64
import dataclasses
import importlib
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import fdrl_jax as fdrl
from experiments import experiment, prior, run, settings
from experiments import main as program
from experiments.command import Command
from experiments.data import built_in as points
from experiments.data.built_in import digits
from experiments.data.source import Source
from experiments.evaluation.classes import SvcClassifier
from experiments.experiment import Experiment
from fdrl_jax import networks
from fdrl_jax.metrics import frechet_distance
from fdrl_jax.training import parallel
from fdrl_jax.training.state import TrainState

FOLDER = Path(__file__).parent / "flow"
MODELS = FOLDER / "models.js"
TARGETS = {"swissroll": "Swiss roll", "8gaussians": "Eight Gaussians"}
_VARIABLE, _EXPORT = "const MODELS = ", 'if (typeof module === "object") module.exports = MODELS;\n'
_NUM_CENTRES = 500  # Of the roll. They are at most 1.1 standard deviations apart.
_NUM_REAL = 10_000

# An MLP, which a page evaluates in a few lines, in place of the residual network of the config.
DIGITS_HIDDEN_SIZES = (96, 96, 96)
DIGITS_NUM_STEPS = 2_000
DIGITS_BATCH_SIZE = 128
DIGITS_FLOW_STEPS = (20, 12)  # K and κ, more than in the config, which makes up for the network.


@dataclasses.dataclass(frozen=True)
class Model:
    """A trained network of the page.

    Attributes:
      title: name of the data.
      config: the config of the run, or the recipe.
      sizes: of the layers, [D, hidden ..., 1].
      weights: of all layers in order, the kernel [in, out] by rows and then the bias [out].
      flow: "stepSize", "noiseScale" and "length" of sampling.
      real: mean of `log r` over real data.
      arrays: further arrays: "centres" [C, D] of the density, or "mean" [D] and "factor" [D, D] of
        the data-dependent prior.
      sigma: standard deviation of the density around its centres; 0 without centres.
    """

    title: str
    config: str
    sizes: Sequence[int]
    weights: np.ndarray
    flow: Mapping[str, float]
    real: float
    arrays: Mapping[str, np.ndarray]
    sigma: float = 0.0


def main() -> None:
    """Trains what is missing, writes the models and prints their scores."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, default=Path("runs/flow_page"))
    workdir = parser.parse_args().workdir
    models = {name: of_points(name, workdir) for name in TARGETS} | {"digits": of_digits()}
    write(models)
    samples, start = score(models["digits"])
    print(f"digits: Fréchet distance {samples:.2f} (prior {start:.2f})")
    print(MODELS)


def write(models: Mapping[str, Model], path: Path = MODELS) -> None:
    """Writes the models as a script, because a page that is opened as a file cannot read files."""
    path.write_text(encode(models))


def encode(models: Mapping[str, Model]) -> str:
    """Returns the script: JSON with one line per value, and arrays as base64 of float32."""
    values = {
        name: {
            "title": model.title,
            "config": model.config,
            "sizes": list(model.sizes),
            "flow": dict(model.flow),
            "real": model.real,
            "sigma": model.sigma,
            "weights": _to_base64(model.weights),
            "arrays": {key: _to_base64(array) for key, array in model.arrays.items()},
        }
        for name, model in models.items()
    }
    return (
        f"// Written by docs/flow_page.py.\n{_VARIABLE}{json.dumps(values, indent=1)};\n{_EXPORT}"
    )


def read(path: Path = MODELS) -> dict[str, Model]:
    """Returns the models of the page; the arrays are flat."""
    text = path.read_text()
    values = json.loads(text[text.index(_VARIABLE) + len(_VARIABLE) : text.rindex(";\nif")])
    return {
        name: Model(
            **value
            | {
                "weights": _from_base64(value["weights"]),
                "arrays": {key: _from_base64(text) for key, text in value["arrays"].items()},
            }
        )
        for name, value in values.items()
    }


def unflatten(model: Model) -> tuple[networks.MLP, dict[str, Any]]:
    """Returns the network of a model and its variables, for `network.apply(variables, x)`."""
    network, params, first = networks.MLP(tuple(model.sizes[1:-1])), {}, 0
    for index, (size, outputs) in enumerate(zip(model.sizes, model.sizes[1:], strict=False)):
        last = first + size * outputs
        kernel = model.weights[first:last].reshape(size, outputs)
        first = last + outputs
        params[f"mlp_{2 * index}"] = {"kernel": kernel, "bias": model.weights[last:first]}
    return network, {"params": params}


def flatten(variables: Mapping[str, Any]) -> np.ndarray:
    """Returns the weights of an MLP in the order of `Model.weights`."""
    layers = sorted(variables["params"].items(), key=lambda item: int(item[0].split("_")[1]))
    parts = (np.ravel(layer[name]) for _, layer in layers for name in ("kernel", "bias"))
    return np.concatenate([np.asarray(part, np.float32) for part in parts])


def centres(name: str) -> np.ndarray:
    """Returns the points [C, 2] around which the data of a set in the plane are distributed."""
    if name != "swissroll":
        return np.asarray(points.POINTS[name]().density.modes, np.float32)
    return points.spiral(np.linspace(0.0, 1.0, _NUM_CENTRES)).astype(np.float32)


def of_points(name: str, workdir: Path) -> Model:
    """Trains the config of a set in the plane, unless its run exists, and returns the model."""
    config, folder = f"configs/{name}.py", workdir / name
    program.main([f"--config={config}", f"--workdir={folder}"])
    opened = run.open_checkpoint(Command(mode="sample", folder=folder))
    sigma = opened.run.source().density.mode_std or points.ROLL_STD
    return _model_of(
        opened.experiment, opened.state, TARGETS[name], config, {"centres": centres(name)}, sigma
    )


def of_digits(num_steps: int = DIGITS_NUM_STEPS) -> Model:
    """Trains a network on digits by the recipe of their config, and returns the model.

    Unlike the config, an image is a point [64] of a small MLP, and prior samples are not clipped.
    The number of steps must be a multiple of `train.steps_per_dispatch`, 10.
    """
    source = _flat(digits())
    config = importlib.import_module("configs.digits").get_config()
    config.precision = "float32"
    config.network.name, config.network.hidden_sizes = "mlp", DIGITS_HIDDEN_SIZES
    config.network.denoiser_width = 0
    config.flow.num_steps, config.flow.num_refine_steps = DIGITS_FLOW_STEPS
    config.train.batch_size, config.train.num_steps = DIGITS_BATCH_SIZE, num_steps
    wanted = settings.from_config(config.to_dict())
    fitted = prior.fit(source.train_batches(), 0, wanted.prior.jitter)
    model = experiment.build(wanted, source, fitted)
    run_steps = parallel.map_steps(model.repeated_step())
    constants = experiment.on_devices(model.constants)
    of_all = parallel.replicate(model.init_state())
    count = wanted.train.steps_per_dispatch
    for _ in range(num_steps // count):
        of_all, _ = run_steps(model.root_key, of_all, constants, None, count, 0)
    trained = parallel.unreplicate(of_all)
    arrays = {"mean": fitted.mean, "factor": fitted.factor}
    return _model_of(model, trained, "Digits", "configs/digits.py", arrays)


def score(model: Model, num: int = 720) -> tuple[float, float]:
    """Returns the Fréchet distances of samples of digits, and of the prior, to held-out digits."""
    source, size = digits(), model.sizes[0]
    factor = model.arrays["factor"].reshape(size, size)
    noise = np.random.default_rng(0).normal(size=(num, size))
    x0 = (model.arrays["mean"] + noise @ factor.T).astype(np.float32)
    svc = SvcClassifier(source.arrays["real"], source.arrays["label"])
    held_out = svc.features(source.held_out(source.num_held_out, 0))

    def distance(x: np.ndarray) -> float:
        return frechet_distance(svc.features(x.reshape(num, *source.event_shape)), held_out)

    return distance(sample(model, x0)), distance(x0)


def sample(model: Model, x0: np.ndarray) -> np.ndarray:
    """Returns where points [B, D] flow by the settings of the model."""
    network, variables = unflatten(model)
    potential = fdrl.first_variation(
        jax.tree_util.Partial(network.apply, variables), "kl", output="log_ratio"
    )
    moved = fdrl.flow(
        jax.random.key(0),
        x0,
        potential,
        num_steps=int(model.flow["length"]),
        step_size=model.flow["stepSize"],
        noise_scale=model.flow["noiseScale"],
    )
    return np.asarray(moved)


def copy(app: Any, error: Exception | None) -> None:
    """Copies the page into the documentation that Sphinx has built."""
    if error is None:
        target = Path(app.outdir) / FOLDER.name
        target.mkdir(exist_ok=True)
        for path in FOLDER.iterdir():
            shutil.copy(path, target)


def _model_of(
    model: Experiment,
    trained: TrainState,
    title: str,
    config: str,
    arrays: Mapping[str, np.ndarray],
    sigma: float = 0.0,
) -> Model:
    """Returns the model of a trained experiment."""
    variables, flow = model.sampling_variables(trained), model.settings.flow
    held_out = model.source.held_out(_NUM_REAL, 0)
    real = model.problem.estimator.apply(variables, held_out)
    return Model(
        title=title,
        config=config,
        sizes=(held_out.shape[1], *model.network.hidden_sizes, 1),
        weights=flatten(variables),
        flow={
            "stepSize": flow.step_size,
            "noiseScale": flow.noise_scale,
            "length": flow.num_steps + flow.num_refine_steps,
        },
        real=round(float(np.mean(real)), 4),
        arrays=arrays,
        sigma=sigma,
    )


def _flat(source: Source) -> Source:
    """Returns a set of images as one of points, [H W C]."""

    def flat(images: Any) -> Any:
        return images.reshape(len(images), -1)

    def draw(*arguments: Any) -> dict[str, jax.Array]:
        batch = source.draw(*arguments)
        return batch | {"real": flat(batch["real"])}

    return source._replace(
        event_shape=(math.prod(source.event_shape),),
        draw=draw,
        train_batches=lambda num=None: map(flat, source.train_batches(num)),
        held_out=lambda num, seed: flat(source.held_out(num, seed)),
    )


def _to_base64(array: np.ndarray) -> str:
    return base64.b64encode(np.asarray(array, "<f4").tobytes()).decode()


def _from_base64(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<f4")


if __name__ == "__main__":
    main()

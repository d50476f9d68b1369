"""A trained sampler as a folder for `fdrl_jax.pretrained`: arrays, arguments, a model card."""

import dataclasses
import itertools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict
from safetensors.numpy import save

from experiments import devices, files, run, settings
from experiments.command import Command
from experiments.evaluation import metrics
from experiments.experiment import Experiment
from fdrl_jax.training.state import TrainState

_CARD = Path(__file__).with_suffix(".md")  # A template for `str.format`.


def export(command: Command) -> None:
    """Writes the sampler of a checkpoint to a new folder in `export/`, next to earlier ones."""
    opened = run.open_checkpoint(command)
    if not devices.is_first_process():
        return
    key = run.key_of(opened, None)
    name, folder = run.name_of(opened, key), opened.run.exports
    folder.mkdir(exist_ok=True)
    with files.unfinished_folder(folder) as temporary:
        write(opened.experiment, opened.state, temporary / name, opened.run.newest_evaluation(key))
        names = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))
        written = next(folder / name for name in names if not (folder / name).exists())
        (temporary / name).rename(written)
    print(f"sampler of step {opened.step:,}: {written}")
    print(f"in Python: sampler = fdrl_jax.pretrained({str(written)!r})")


def write(
    model: Experiment, state: TrainState, folder: Path, evaluation: Mapping[str, Any] | None = None
) -> None:
    """Writes the sampler of a train state to a new folder, with the record of its evaluation."""
    tree = {"network": state.ema_variables}
    if model.constants.prior:
        tree["prior"] = model.constants.prior
    # safetensors writes the buffer of an array as it is, so the array must be contiguous.
    flat = sorted(flatten_dict(tree, sep="/").items())
    arrays = {name: np.array(array, order="C") for name, array in flat}
    folder.mkdir(parents=True)
    file = folder / "model.safetensors"
    with files.replacing(file) as opened:
        opened.write(save(arrays, {"format": "flax"}))
    content = {"step": int(state.step), "sha256": files.sha256_of_file(file), **arguments(model)}
    content["config_sha256"] = files.sha256_of_json(content)
    files.write_json(folder / "config.json", content)
    files.write_text(folder / "README.md", card(model, int(state.step), evaluation))


def arguments(model: Experiment) -> dict[str, Any]:
    """Returns the arguments of library functions that rebuild the sampler, as values for JSON."""
    denoiser = {"denoiser": _fields(model.denoiser)} if model.denoiser else {}
    return {
        "data": run.describe_data(model.source),
        "event_shape": list(model.source.event_shape),
        "network": _fields(model.network),
        **denoiser,
        "prior": model.prior_arguments,
        "loss": model.settings.loss.name,
        "divergence": model.settings.loss.divergence,
        "flow": dataclasses.asdict(model.settings.flow),
        "seed": model.settings.seed,
        "settings": settings.shareable(model.settings),
    }


def _fields(module: nn.Module) -> dict[str, Any]:
    names = [f.name for f in dataclasses.fields(module) if f.name not in ("parent", "name")]
    return {name: getattr(module, name) for name in names}


def card(model: Experiment, step: int, evaluation: Mapping[str, Any] | None) -> str:
    """Returns the README: a model card in the format of the Hugging Face hub."""
    source = model.source
    classes, recipe = ", ".join(map(_plain, source.classes)), settings.changed(model.settings)
    # The format that the hub's front matter allows.
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", source.name.removeprefix("tfds:")).strip("-.") or "own"
    return _CARD.read_text("utf-8").format(
        task="unconditional-image-generation" if source.kind == "images" else "other",
        dataset=json.dumps(slug),
        name=_plain(source.name),
        step=step,
        snippet=snippet(model),
        kind=source.kind,
        shape=" x ".join(map(str, source.event_shape)),
        classes=f", with the classes {classes}" if classes else "",
        recipe="\n".join(f"| `{k}` | `{_plain(json.dumps(v), '|`')}` |" for k, v in recipe.items()),
        metrics=_metrics(evaluation),
    )


def snippet(model: Experiment) -> str:
    """Returns code that draws samples with the library, run in the folder of the export."""
    key = f"fdrl.training.rng.root_key({model.settings.seed})"
    packages, lines = "", [f"samples = sampler({key}, 64)"]
    if model.source.starts is not None:
        packages = "import jax\nimport numpy as np\n\n"
        lines = ["# Images to start from, float32 in [-1, 1].", 'images = np.load("images.npy")']
        if noise := model.settings.data.dequantisation:
            random = "jax.random.normal(jax.random.key(1), images.shape)"
            lines += [f"images = images + {noise} * {random}"]
        lines += ["samples = sampler.method.sample(jax.random.key(0), images, sampler.estimator)"]
        if model.denoiser:
            lines += ["samples = sampler.problem.denoise(sampler.variables, samples)"]
    elif model.settings.network.by_class:
        lines[0] += "  # Of all classes in turn."
        lines += [f"of_first_class = sampler({key}, 64, labels=[0] * 64)"]
    head = f'{packages}import fdrl_jax as fdrl\n\nsampler = fdrl.pretrained(".")'
    return "\n".join([head, *lines])


def _metrics(evaluation: Mapping[str, Any] | None) -> str:
    if evaluation is None:
        return "This checkpoint was not evaluated before it was exported."
    details, found = evaluation["details"], metrics.from_json(evaluation["metrics"])
    header = metrics.columns(details.get("start", "prior"))
    table = [header, ("---",) * len(header), *metrics.rows(found)]
    environment = ", ".join(f"{name} {value}" for name, value in details["environment"].items())
    lines = [
        f"Of {details['num_samples']:,} samples; the number at the end of a name is the number of "
        "samples per draw, and values are means ± standard deviations over draws. Computed with "
        f"{environment}.\n",
        *(f"| {' | '.join(map(_plain, row))} |" for row in table),
        "",
        *(f"- `{m.name}`: {m.defined.words}" for m in found.values()),
    ]
    return "\n".join(lines)


def _plain(text: str, special: str = "|`<>[]") -> str:
    """Escapes text chosen by a user, so that it cannot form Markdown or HTML."""
    return re.sub(rf"[{re.escape(special)}\n\r]", "_", text)

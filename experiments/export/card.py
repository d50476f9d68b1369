"""The README of an export: a model card in the format of the Hugging Face hub."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments import settings
from experiments.divergence_formula import describe
from experiments.evaluation import metrics as metrics_lib
from experiments.experiment import Experiment
from fdrl_jax import networks

_PRIORS = {
    "normal": 'priors.normal(**config["prior"])',
    "uniform": 'priors.uniform(**config["prior"])',
    "source": 'priors.batch(**config["prior"])',
    "data_dependent": (
        'priors.gaussian(arrays["prior"]["mean"].reshape(config["event_shape"]),\n'
        '                        arrays["prior"]["factor"], **config["prior"])'
    ),
}
_CARD = Path(__file__).with_suffix(".md")  # A template for `str.format`.


def write(
    model: Experiment, metadata: Mapping[str, Any], evaluation: Mapping[str, Any] | None
) -> str:
    """Returns the model card of an export."""
    source, of_run = model.source, model.settings
    classes = ", ".join(map(_plain, source.labels.classes)) if source.labels else ""
    return _CARD.read_text("utf-8").format(
        task="unconditional-image-generation" if source.kind == "images" else "other",
        dataset=json.dumps(_slug(source.name)),
        name=_plain(source.name),
        step=metadata["step"],
        platforms=", ".join(metadata["platforms"]),
        snippet=snippet(model),
        weights=of_run.sample.weights,
        written=metadata["written"],
        expires=metadata["expires"],
        jax=metadata["versions"]["jax"],
        lifetime=metadata["lifetime"],
        kind=source.kind,
        shape=" x ".join(map(str, source.event_shape)),
        classes=f", with the classes {classes}" if classes else "",
        recipe="\n".join(
            f"| `{key}` | `{_code(json.dumps(value))}` |"
            for key, value in settings.changed(of_run).items()
            if key not in settings.PATHS
        ),
        metrics=_metrics(evaluation),
    )


def snippet(model: Experiment) -> str:
    """Returns code that draws the same samples with the library, run in the export's folder."""
    is_combined = not isinstance(describe(model.settings.loss.divergence), str)
    divergence = f'divergences.{"combine(*" if is_combined else "get("}config["divergence"])'
    network = 'networks.MLP(**config["network"])'
    if isinstance(model.network, networks.ResNet):
        spec = 'networks.ResNetSpec(*config["network"].pop("spec"))'
        network = f'networks.ResNet({spec}, **config["network"])'
    starts = "" if model.source.starts is None else ', "source": images'
    batch = f'{{"position": np.arange(8, dtype=np.int32){starts}}}'
    lines = (
        "import json, pathlib, jax, numpy as np",
        "from flax.traverse_util import unflatten_dict",
        "from safetensors.numpy import load_file",
        "from fdrl_jax import bregman, divergences, networks, priors",
        "from fdrl_jax.training import problem, rng, samplers",
        'config = json.loads(pathlib.Path("config.json").read_text())',
        'arrays = unflatten_dict(load_file("model.safetensors"), sep="/")',
        f"network = problem.Estimator.from_network({network})",
        f"prior = {_PRIORS[model.settings.prior.name]}",
        'learnt = problem.Problem(network, bregman.get(config["loss"]),\n'
        f'    {divergence}, problem.FlowParams(**config["flow"]), prior.sample)',
        'samples = jax.jit(samplers.make_sampler(learnt))(rng.root_key(config["seed"]),\n'
        f'    arrays["network"], problem.Constants((), prior.params), {batch}).refined',
    )
    return "\n".join(lines)


def _metrics(evaluation: Mapping[str, Any] | None) -> str:
    if evaluation is None:
        return "This checkpoint was not evaluated before it was exported."
    details, found = evaluation["details"], metrics_lib.from_json(evaluation["metrics"])
    start = details.get("start", "prior")
    header = metrics_lib.columns(start)
    rows = [header, ("---",) * len(header), *metrics_lib.rows(found)]
    words = [f"- `{m.name}`: {m.defined.words} ({m.defined.unit})" for m in found.values()]
    versions = ", ".join(f"{name} {v}" for name, v in details.get("versions", {}).items())
    table = "\n".join(f"| {' | '.join(map(_plain, row))} |" for row in rows)
    protocol = (
        f"Protocol: {evaluation['key']['num_samples']:,} samples; the number at the end of a name "
        "is the number of samples per draw, and values are means ± standard deviations over "
        f"draws. Computed in {details.get('precision', 'float32')}"
        f"{f' with {versions}' if versions else ''}."
    )
    return "\n".join([protocol, "", table, "", *words])


def _slug(name: str) -> str:
    """Returns the name of a data set in the form that the hub's front matter allows."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name.removeprefix("tfds:")).strip("-.") or "own"


def _plain(text: str) -> str:
    """Escapes text chosen by a user, so that it cannot form Markdown or HTML."""
    return re.sub(r"[|`<>\n\r\[\]]", "_", text)


def _code(text: str) -> str:
    """Escapes text for code in a cell of a table."""
    return re.sub(r"[|`\n\r]", "_", text)

"""The README of an export: a model card in the format of the Hugging Face hub."""

import json
import re
from collections.abc import Mapping
from typing import Any

from experiments import settings
from experiments.build import Experiment
from experiments.divergence_formula import describe
from experiments.evaluation import metrics as metrics_lib
from experiments.export.model import shareable
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
_CARD = """---
license: unknown
library_name: fdrl_jax
pipeline_tag: {task}
tags:
- jax
- flax
- generative-model
- density-ratio-estimation
datasets:
- {dataset}
---

# FDRL on {name}

A sampler that was trained by flow-guided density ratio learning (FDRL) with `fdrl_jax`: a network
estimates the density ratio of flowed samples over data, and its gradient drives samples from the
prior to the data. This is train step {step:,} of a run on `{name}`.

## Draw samples

With only JAX and `flatbuffers`, on {platforms}:

    python load_sampler.py --num_samples=1000 --out=samples.npz

or in Python: `from load_sampler import Sampler; samples = Sampler()(1000)`. Sample `i` does not
depend on how many samples are drawn.

With the library `fdrl_jax`, from `model.safetensors` and `config.json`:

```python
{snippet}
```

| file | content |
|---|---|
| `model.safetensors` | parameters of the network ({weights}) and arrays of the prior |
| `config.json` | arguments of network, prior and flow, and all settings |
| `sampler.stablehlo` | the compiled program in the format of `jax.export`, for any batch size |
| `arrays.npz` | the arrays of `model.safetensors`, as `load_sampler.py` reads them |
| `load_sampler.py` | loads the program and its arrays, and draws samples |
| `metadata.json` | shapes, versions, dates and hashes |

`sampler.stablehlo` was written on {written} by JAX {jax} and is not guaranteed to load after
{expires}. {lifetime}

## Data

`{name}`: {kind} of shape {shape}{classes}.

## Recipe

Settings that differ from the defaults. All settings are in `config.json`.

| setting | value |
|---|---|
{recipe}

## Metrics

{metrics}

## Limits

The samples reproduce the biases of the training data and may resemble single training examples.
The estimator is a density ratio between flowed samples and data; away from both it is not
calibrated, and with another step size or number of flow steps the metrics above do not hold.

## Licence

`fdrl_jax` is under the MIT licence. The licence of these parameters depends on the data they were
trained on: replace `license: unknown` by one that the data allow before you publish them.

## Citation

```bibtex
@inproceedings{{heng2024generative,
  title     = {{Generative Modeling with Flow-Guided Density Ratio Learning}},
  author    = {{Heng, Alvin and Ansari, Abdul Fatir and Soh, Harold}},
  booktitle = {{Machine Learning and Knowledge Discovery in Databases (ECML PKDD)}},
  year      = {{2024}},
  note      = {{arXiv:2303.03714}}
}}
```
"""


def write(
    experiment: Experiment, metadata: Mapping[str, Any], evaluation: Mapping[str, Any] | None
) -> str:
    """Returns the model card of an export.

    Args:
      experiment: the run.
      metadata: metadata of the export.
      evaluation: the record of an evaluation of the same checkpoint and settings, if there is one.
    """
    source, of_run = experiment.source, experiment.settings
    is_image = source.kind == "images"
    classes = ", ".join(map(_plain, source.labels.classes)) if source.labels else ""
    return _CARD.format(
        task="unconditional-image-generation" if is_image else "other",
        dataset=json.dumps(_slug(source.name)),
        name=_plain(source.name),
        step=metadata["step"],
        platforms=", ".join(metadata["platforms"]),
        snippet=snippet(experiment),
        weights=of_run["sample.weights"],
        written=metadata["written"],
        expires=metadata["expires"],
        jax=metadata["versions"]["jax"],
        lifetime=metadata["lifetime"],
        kind=source.kind,
        shape=" x ".join(map(str, source.event_shape)),
        classes=f", with the classes {classes}" if classes else "",
        recipe=_recipe(of_run),
        metrics=_metrics(evaluation),
    )


def snippet(experiment: Experiment) -> str:
    """Returns code that draws the same samples with the library, run in the export's folder."""
    is_combined = not isinstance(describe(experiment.settings["loss.divergence"]), str)
    divergence = f'divergences.{"combine(*" if is_combined else "get("}config["divergence"])'
    network = 'networks.MLP(**config["network"])'
    if isinstance(experiment.network, networks.ResNet):
        spec = 'networks.ResNetSpec(*config["network"].pop("spec"))'
        network = f'networks.ResNet({spec}, **config["network"])'
    batch = '{"position": np.arange(8, dtype=np.int32)}'
    if experiment.source.starts is not None:
        batch = '{"position": np.arange(8, dtype=np.int32), "source": images}'
    lines = (
        "import json, pathlib, jax, numpy as np",
        "from flax.traverse_util import unflatten_dict",
        "from safetensors.numpy import load_file",
        "from fdrl_jax import bregman, divergences, networks, priors, problem, rng, samplers",
        'config = json.loads(pathlib.Path("config.json").read_text())',
        'arrays = unflatten_dict(load_file("model.safetensors"), sep="/")',
        f"network = problem.Estimator.from_network({network})",
        f"prior = {_PRIORS[experiment.settings['prior.name']]}",
        'learnt = problem.Problem(network, bregman.get(config["loss"]),\n'
        f'    {divergence}, problem.FlowParams(**config["flow"]), prior.sample)',
        'samples = jax.jit(samplers.make_sampler(learnt))(rng.root_key(config["seed"]),\n'
        f'    arrays["network"], problem.Constants((), prior.params), {batch}).refined',
    )
    return "\n".join(lines)


def _recipe(of_run: Mapping[str, Any]) -> str:
    rows = [
        f"| `{key}` | `{_plain(json.dumps(value))}` |"
        for key, value in shareable(of_run).items()
        if json.dumps(value) != json.dumps(settings.SETTINGS[key].default)
    ]
    return "\n".join(rows)


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
    return "\n".join(
        [
            f"Protocol: {evaluation['key']['num_samples']:,} samples; the number at the end of a "
            "name is the number of samples per draw, and values are means ± standard deviations "
            f"over draws. Computed in {details.get('precision', 'float32')}"
            f"{f' with {versions}' if versions else ''}.",
            "",
            table,
            "",
            *words,
        ]
    )


def _slug(name: str) -> str:
    """Returns the name of a data set in the form that the hub's front matter allows."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name.removeprefix("tfds:")).strip("-.") or "own"


def _plain(text: str) -> str:
    """Escapes text chosen by a user, so that it cannot form Markdown or HTML."""
    return re.sub(r"[|`<>\n\r\[\]]", "_", text)

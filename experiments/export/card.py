"""The README of an export: a model card in the format of the Hugging Face hub."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments import settings
from experiments.evaluation import metrics as metrics_lib
from experiments.experiment import Experiment
from fdrl_jax.training.state import TrainState

_CARD = Path(__file__).with_suffix(".md")  # A template for `str.format`.


# How to draw with an export that is not compact, and the rest of its table of files.
_DRAW = """

With only JAX and `flatbuffers`, on {platforms}:

    python load_sampler.py {flags}

or in Python: `from load_sampler import Sampler; samples = Sampler()(100{source})`."""
_FILES = """
| `sampler.stablehlo` | the compiled program in the format of `jax.export`, for any batch size |
| `arrays.npz` | the arrays of `model.safetensors`, as `load_sampler.py` reads them |
| `load_sampler.py` | loads the program and its arrays, and draws samples |
| `metadata.json` | shapes, versions, dates and hashes |

`sampler.stablehlo` was written on {written} by JAX {jax} and is not guaranteed to load after
{expires}. {lifetime}"""


def write(
    model: Experiment,
    state: TrainState,
    evaluation: Mapping[str, Any] | None,
    metadata: Mapping[str, Any] | None = None,
) -> str:
    """Returns the model card of an export; a compact one has no metadata."""
    source, of_run = model.source, model.settings
    classes = ", ".join(map(_plain, source.labels.classes)) if source.labels else ""
    arrays = f"parameters of the network ({of_run.sample.weights}) and arrays of the prior"
    draw, files = "", ""
    if metadata is None:
        arrays = f"{arrays}, large ones in 8 bits"
    else:
        draw = _DRAW.format(
            platforms=", ".join(metadata["platforms"]),
            flags=flags(model),
            source="" if source.starts is None else ", source=images",
        )
        files = _FILES.format(**metadata, jax=metadata["versions"]["jax"])
    return _CARD.read_text("utf-8").format(
        task="unconditional-image-generation" if source.kind == "images" else "other",
        dataset=json.dumps(_slug(source.name)),
        name=_plain(source.name),
        step=int(state.step),
        snippet=snippet(model),
        draw=draw,
        arrays=arrays,
        files=files,
        kind=source.kind,
        shape=" x ".join(map(str, source.event_shape)),
        classes=f", with the classes {classes}" if classes else "",
        recipe="\n".join(
            f"| `{key}` | `{_code(json.dumps(value))}` |"
            for key, value in settings.changed(of_run).items()
            if key not in settings.PATHS
        ),
        metrics=_metrics(evaluation, is_compact=metadata is None),
    )


def flags(model: Experiment) -> str:
    """Returns the flags of `load_sampler.py` for some samples."""
    source = "" if model.source.starts is None else "--source=images.npy "
    return f"--num_samples=100 {source}--out=samples.npz"


def snippet(model: Experiment) -> str:
    """Returns code that draws samples with the library, run in the folder of the export."""
    draw = f"samples = sampler(fdrl.training.rng.root_key({model.settings.seed}), 64)"
    if model.source.starts is not None:
        lines = ["# Images to start from, float32 in [-1, 1].", 'images = np.load("images.npy")']
        if noise := model.settings.data.dequantisation:
            key = "jax.random.key(1)"
            lines += [f"images = images + {noise} * jax.random.normal({key}, images.shape)"]
        lines += ["samples = sampler.method.sample(jax.random.key(0), images, sampler.estimator)"]
        if model.denoiser:
            lines += ["samples = sampler.problem.denoise(sampler.variables, samples)"]
        draw = "\n".join(lines)
    elif model.settings.network.by_class:
        draw = (
            f"key = fdrl.training.rng.root_key({model.settings.seed})\n"
            "samples = sampler(key, 64)  # Of all classes in turn.\n"
            "of_first_class = sampler(key, 64, labels=[0] * 64)"
        )
    packages = "" if model.source.starts is None else "import jax\nimport numpy as np\n\n"
    return f'{packages}import fdrl_jax as fdrl\n\nsampler = fdrl.pretrained(".")\n{draw}'


def _metrics(evaluation: Mapping[str, Any] | None, *, is_compact: bool) -> str:
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
        f"Protocol: {details['num_samples']:,} samples; the number at the end of a name "
        "is the number of samples per draw, and values are means ± standard deviations over "
        f"draws. Computed in {details.get('precision', 'float32')}"
        f"{f' with {versions}' if versions else ''}."
    )
    if is_compact:
        protocol += (
            " These are the metrics of the run, before its arrays were rounded to 8 bits and its "
            "prior was simplified."
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

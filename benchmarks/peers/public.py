"""Distances of a race in the features of a public network, which others can compute as well.

The network needs a minute for 2,000 images on a core, so the distances are computed after the race,
from the samples that it keeps. A file of its own has a line of JSON per set of images. Each set is
compared as it is, and after the denoiser of `denoising`.
"""

from pathlib import Path
from typing import Any

from benchmarks.peers import denoising, efficientnet, page, race
from benchmarks.peers.data import Split
from benchmarks.peers.page import DENOISED, PUBLIC, Result
from experiments.data.decode import to_unit
from experiments.files import append_line, read_npz
from fdrl_jax.metrics import frechet_distance

_DENOISED = f"denoised-{denoising.NOISE:g}-"  # Before the name of images.


def add_missing(results: list[Result], images: Split, cache: Path) -> None:
    """Computes the distances to the reference images that the file lacks.

    Args:
      results: of one data set. Those whose samples were not kept are skipped and reported.
      images: the data set.
      cache: folder of the samples and of the file.

    Raises:
      UserError: if a package of the network is missing.
    """
    features, reference = efficientnet.load(), None
    data = results[0]["data"]
    known = set(_known(data, cache))
    skipped = []
    for result in results:
        run = race.run_of(result)
        for row, name in _named_rows(result):
            missing = {name, _DENOISED + name} - known
            if not missing:
                continue
            if row is result["real"]:
                pixels = race.real_images(run, images).pixels
            elif (cache / name).exists():
                pixels = read_npz(cache / name)["arr_0"]
            else:
                skipped.append(name)
                continue
            if reference is None:
                reference = features(to_unit(images.reference.pixels))
                file = cache / f"{data}-denoiser-{denoising.NOISE:g}.npz"
                denoised = denoising.load_or_train(file, images.contestants)
            for one in sorted(missing):
                compared = denoised(pixels) if one.startswith(_DENOISED) else pixels
                distance = frechet_distance(features(to_unit(compared)), reference)
                line = {"images": one, PUBLIC: distance, "num_reference": len(reference)}
                append_line(_file(run.data, cache), line | efficientnet.describe())
                known.add(one)
    if skipped:
        print(f"{len(skipped)} sets of samples were not kept in {cache}, such as {skipped[0]}")


def merged(results: list[Result], cache: Path) -> list[Result]:
    """Returns results of one data set with the distances that are known."""
    known = _known(results[0]["data"], cache)
    return [result | _with_distances(result, known) for result in results]


def _with_distances(result: Result, known: dict[str, float]) -> dict[str, Any]:
    rows = []
    for row, name in _named_rows(result):
        names = {PUBLIC: name, DENOISED: _DENOISED + name}
        rows.append(row | {key: known[one] for key, one in names.items() if one in known})
    return {"real": rows[0], "samples": rows[1:]}


def _named_rows(result: Result) -> list[tuple[Result, str]]:
    """Returns the rows of figures of a result, real images first, with the name of the images."""
    run = race.run_of(result)
    return [(result["real"], f"real-{run.seed}-{run.num_samples}")] + [
        (row, race.samples_name(run, row)) for row in result["samples"]
    ]


def _known(data: str, cache: Path) -> dict[str, float]:
    return {line["images"]: line[PUBLIC] for line in page.read(_file(data, cache))}


def _file(data: str, cache: Path) -> Path:
    return cache / f"{data}-{efficientnet.NAME}.jsonl"

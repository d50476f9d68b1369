"""Records of samples and evaluations of a run, each with its own name and never replaced."""

import errno
import logging
from pathlib import Path
from typing import Any

from experiments import settings
from experiments.errors import UserError
from experiments.files import check_types, read_json, sha256_of_json
from experiments.run import Run
from experiments.sampling.opened import Opened

Key = dict[str, Any]


def key_of(opened: Opened, num_samples: int | None, **more: Any) -> Key:
    """Returns everything that determines a record, as values for JSON.

    `num_samples` is `None` if the record does not depend on it; `more` are its further inputs, such
    as a classifier's digest.
    """
    experiment = opened.experiment
    return {
        "run": opened.run.id,
        "step": opened.step,
        "checkpoint_sha256": opened.checkpoint.sha256,
        "num_samples": num_samples,
        "settings": settings.of_scope(experiment.settings, "flow"),
        **more,
    }


def name_of(opened: Opened, key: Key) -> str:
    """Returns the name of a record: `step_N`, with a digest unless all settings are the run's.

    The number of samples is one of them. A record with a classifier has a digest as well.
    """
    of_run = opened.run.settings
    is_own = (
        key["settings"] == settings.of_scope(of_run, "flow")
        and key["num_samples"] in (None, of_run["evaluate.num_samples"])
        and not key.get("classifier")
    )
    return f"step_{opened.step}" if is_own else f"step_{opened.step}_{sha256_of_json(key)[:8]}"


def find(opened: Opened, key: Key) -> tuple[Path, bool]:
    """Returns the path of an evaluation's record, and whether it exists.

    If a record of this name has another key, for instance because the run was rolled back, it is
    kept, and the new record gets a name with its digest.

    Raises:
      UserError: if a record is damaged; names it.
    """
    path = opened.run.evaluations / name_of(opened, key)
    if (path / "record.json").is_file() and read_json(path / "record.json", key=dict)["key"] != key:
        path = path.with_name(f"{path.name}_{sha256_of_json(key)[:8]}")
    return path, (path / "record.json").is_file()


def add(unfinished: Path, path: Path) -> None:
    """Renames a finished record to its name. If another program has just added it, that one stays.

    The `unfinished` folder is in the folder of all records or below it; the path is from `find`.

    Raises:
      UserError: if another file or folder has this name.
    """
    try:
        unfinished.rename(path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        if not (path / "record.json").is_file():
            raise UserError(f"{path} exists and is not a record; move it elsewhere") from error


def newest(folder: Path) -> Path | None:
    """Returns the newest record in a folder, if there is one."""
    found = sorted(folder.glob("*/record.json"), key=lambda path: path.stat().st_mtime_ns)
    return found[-1].parent if found else None


def of_run(run: Run) -> Path | None:
    """Returns the evaluation whose report is the run's own: with its settings, of its last step.

    If it has a classifier, it is that of the run. A record that is damaged is not it; a warning
    names it.
    """
    classifier = run.settings["condition.classifier"]
    name = Path(classifier).resolve().name if classifier else ""
    own = (run.settings["evaluate.num_samples"], settings.of_scope(run.settings, "flow"), name)
    found = []
    for path in run.evaluations.glob("*/record.json"):
        try:
            record = read_json(path, key=dict, details=dict)
            key, details = record["key"], record["details"]
            check_types(path, key, step=int, settings=dict)
            check_types(path, details, classifier=(dict, type(None)))
        except UserError as error:
            logging.getLogger("fdrl").warning("%s", error)
            continue
        used = details.get("classifier") or {"name": name}
        if (key.get("num_samples"), key["settings"], used.get("name")) == own:
            found.append((key["step"], path.stat().st_mtime_ns, path.parent))
    return max(found)[-1] if found else None


def newest_of(folder: Path, key: Key) -> dict[str, Any] | None:
    """Returns the newest record of a checkpoint with the same settings, if there is one.

    The number of samples in the key is ignored.

    Raises:
      UserError: if a record is damaged; names it.
    """
    found = sorted(folder.glob("*/record.json"), key=lambda path: path.stat().st_mtime_ns)
    wanted = {name: value for name, value in key.items() if name != "num_samples"}
    for path in reversed(found):
        record = read_json(path, key=dict, metrics=dict, details=dict)
        if wanted.items() <= record["key"].items():
            return record
    return None

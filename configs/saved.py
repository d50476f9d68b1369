"""The config of an existing run, from its workdir: `--config=configs/saved.py:WORKDIR`.

`experiments.main` uses it by itself when `--config` is left out and the workdir has a run.
"""

import json
from pathlib import Path

from ml_collections import ConfigDict

from configs import base


def get_config(workdir: str) -> ConfigDict:
    """Returns the base config with the values that the run was started with."""
    config = base.get_config()
    for key, value in json.loads((Path(workdir) / "config.json").read_text())["settings"].items():
        section, _, name = key.rpartition(".")
        target = config[section] if section else config
        target[name] = tuple(value) if isinstance(value, list) else value
    return config

"""The config of an existing run, from its workdir.

Command: python -m experiments.main --config=configs/saved.py:WORKDIR --workdir=WORKDIR
Cost and score are those of that run. `experiments.main` takes this config by itself when `--config`
is left out and the workdir has a run.
"""

import json
from pathlib import Path

from ml_collections import ConfigDict

from configs import base


def get_config(workdir: str) -> ConfigDict:
    """Returns the base config with the values that the run was started with.

    Raises:
      ValueError: naming the file, if it holds no settings of a run.
    """
    config, path = base.get_config(), Path(workdir) / "config.json"
    try:
        for key, value in json.loads(path.read_bytes())["settings"].items():
            section, _, name = key.rpartition(".")
            target = config[section] if section else config
            target[name] = tuple(value) if isinstance(value, list) else value
    except Exception as error:  # Damaged text, other keys, values of another type.
        raise ValueError(f"{path} holds no settings of a run: {error}") from error
    return config

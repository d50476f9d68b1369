"""The commands of the README run as printed, with the tiny variant of the config."""

import re
import shlex
from pathlib import Path

import pytest

from experiments import command_line, modes

README = (Path(__file__).parents[3] / "README.md").read_text()
MAIN = "python -m experiments.main "


@pytest.mark.slow
def test_the_commands_of_the_readme_for_digits_run(of_digits, capsys):
    commands = re.findall(rf"^{re.escape(MAIN)}(.*digits.*)$", README, re.M)
    root, done = str(of_digits.root), []
    for text in commands:
        argv = [
            argument.replace("digits.py", "digits.py:tiny").replace("runs/digits", root)
            for argument in shlex.split(text, comments=True)
        ]
        command = command_line.parse(argv)[0]
        modes.run(command)
        done.append(command.mode)

    assert done == ["train", "dry_run", "sample"]
    assert "whole run: about" in capsys.readouterr().out
    assert any(of_digits.samples.glob("*.npz"))

"""A sweep checks its values before running, skips finished runs, and continues after a failure."""

import csv
import io
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_runs import SMALL_RESNET, start

from experiments import sweep
from experiments.errors import UserError
from experiments.files import locked
from experiments.sweep import Outcome

CONFIG = "configs/25gaussians.py"
GROUPS = {
    "noise": {f"{scale}": {"flow.noise_scale": scale} for scale in (0.0, 0.1)},
    "divergence": {name: {"loss.divergence": name} for name in ("kl", "js")},
}
ROOT = Path(__file__).parents[2]


def planned(**more):
    return sweep.plan({"config": CONFIG, "groups": GROUPS, **more}, Path("runs"))


def test_seeds_are_the_outer_loop_and_equal_runs_share_a_folder():
    groups = {"a": {"x y": {"flow.num_steps": 3}}, "b": {"y": {}, "z": {"flow.num_steps": 4}}}
    runs = planned(groups=groups, settings={"flow.num_steps": 3}, seeds=(0, 1))
    folders = ["a/x_y/seed_0", "a/x_y/seed_0", "b/z/seed_0", "a/x_y/seed_1"]
    assert [str(run.folder) for run in runs[:4]] == [f"runs/{folder}" for folder in folders]
    assert [run.changes["seed"] for run in runs] == [0, 0, 0, 1, 1, 1]
    assert runs[2].settings.flow.num_steps == 4


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"groups": {"a": {"x": {"flow.num_step": 1}}}}, "did you mean 'flow.num_steps'"),
        ({"settings": {"loss.divergence": "kll"}}, "did you mean 'kl'"),
        ({"config": "configs/25gausians.py"}, "did you mean 'configs/25gaussians.py'"),
        ({"seeds": (0, 1, 0)}, "the sweep has equal seeds, whose runs would be equal: (0, 1, 0)"),
        ({"seeds": 3}, "seeds of the sweep must be a list, got 3"),
        ({"metrics": "energy_ratio"}, "metrics of the sweep must be a list, got 'energy_ratio'"),
        ({"settings": {"seed": 5}}, "'0.0' of the sweep sets seed; list seeds under 'seeds'"),
        (
            {"groups": {"a": {"x y": {}, "x_y": {"flow.num_steps": 3}}}},
            "two runs of the sweep would share runs/a/x_y/seed_0; rename 'x_y'",
        ),
        (
            {"groups": {"..": {"..": {}, ".": {"flow.num_steps": 3}}}},
            "two runs of the sweep would share runs/_/_/seed_0; rename '.'",
        ),
        ({"seed": (1,)}, "the sweep has the keys config, groups, seed; allowed: config, groups"),
    ],
)
def test_a_mistake_is_reported_in_one_line_before_anything_runs(more, expected):
    with pytest.raises(UserError, match=re.escape(expected)) as caught:
        planned(**more)
    assert "\n" not in str(caught.value)


def test_the_tables_have_means_over_seeds_remarks_and_every_run():
    runs = planned(seeds=(0, 1, 2))
    outcomes = [
        Outcome("the reason | why", {}) if run.name == "js" else Outcome("", {"q": 1.0 + run.seed})
        for run in runs
    ]
    text = sweep.markdown(runs, outcomes, ["q"])
    assert f"| kl | 3 | 2 ± {statistics.stdev([1, 2, 3]):.2g} |  |" in text.splitlines()
    assert "| js | 3 | - | seed 0: the reason \\| why; seed 1: the reason" in text
    lines = list(csv.DictReader(io.StringIO(sweep.table(runs, outcomes))))
    assert len(lines) == 12
    assert lines[1]["config.flow.noise_scale"] == "0.1"
    assert {line["q"] for line in lines} == {"1.0", "2.0", "3.0", ""}


def test_every_sweep_file_is_one_that_can_run(monkeypatch):
    monkeypatch.chdir(ROOT)
    files = sorted((ROOT / "configs" / "sweeps").glob("[!_]*.py"))
    assert files
    for path in files:
        assert sweep.plan(sweep.read(path), Path("runs"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1 / 0", "division by zero"), ("x = 1", "'get_sweep'")],
)
def test_a_wrong_sweep_file_is_named(text, expected, tmp_path):
    (tmp_path / "own.py").write_text(text)
    with pytest.raises(UserError, match=rf"own\.py: .*{expected}"):
        sweep.read(tmp_path / "own.py")
    with pytest.raises(UserError, match=r"other\.py: .*No such file"):
        sweep.read(tmp_path / "other.py")


def test_a_stopped_sweep_waits_until_its_run_has_saved(tmp_path, monkeypatch):
    """The run takes two seconds to save after SIGTERM."""
    program = (
        "import signal, sys, time, pathlib\n"
        "def save(*_):\n  time.sleep(2)\n  pathlib.Path('saved').touch()\n  sys.exit(4)\n"
        "signal.signal(signal.SIGTERM, save)\npathlib.Path('ready').touch()\ntime.sleep(60)"
    )

    class Program(subprocess.Popen):
        def __init__(self, arguments, **options):
            super().__init__([sys.executable, "-c", program], cwd=tmp_path, **options)

        def wait(self, timeout=None):
            if not (tmp_path / "ready").exists():
                while not (tmp_path / "ready").exists():
                    time.sleep(0.01)
                raise KeyboardInterrupt
            return super().wait(timeout)

    monkeypatch.setattr(sweep.subprocess, "Popen", Program)
    run = sweep.plan({"config": CONFIG, "groups": GROUPS}, tmp_path)[0]
    with pytest.raises(KeyboardInterrupt):
        sweep.run_one(CONFIG, run)
    assert (tmp_path / "saved").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can do it")
def test_the_run_of_a_killed_sweep_saves_and_ends(tmp_path):
    (tmp_path / "waiter.py").write_text(
        "import pathlib, signal, sys, time\n"
        "def save(*_):\n  pathlib.Path('saved').touch()\n  sys.exit(4)\n"
        "signal.signal(signal.SIGTERM, save)\nprint(sys.argv[1:], flush=True)\ntime.sleep(60)"
    )
    program = sweep._PROGRAM.replace("experiments.main", "waiter")
    start = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]])"
    with subprocess.Popen(
        [sys.executable, "-c", start, program, "--flag"], cwd=tmp_path, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout.readline() == b"['--flag']\n"
        parent.kill()
        parent.stdout.read()  # Until the run has ended as well.
    assert (tmp_path / "saved").exists()


def test_two_sweeps_in_one_folder_do_not_run_at_the_same_time(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    with (
        locked(tmp_path / "lock", "the folder", "wait"),
        pytest.raises(UserError, match=r"is in use by .*choose another --workdir"),
    ):
        sweep.main(["--sweep=configs/sweeps/decay_25gaussians.py", f"--workdir={tmp_path}"])


def test_a_run_counts_as_finished_if_the_sweep_as_resumed_it(image_folder, tmp_path):
    settings = {"data.dir": str(image_folder), "data.image_size": 8, **SMALL_RESNET}
    sweep_of_images = {
        "config": "folder:tiny",
        "groups": {"g": {"a": {}}},
        "settings": settings,
    }
    (of,) = sweep.plan(sweep_of_images, tmp_path)
    start("train", of.folder, "folder:tiny", of.changes)
    assert sweep._metrics(of), "its settings are those for this device"
    logged = of._replace(changes={**of.changes, "log.every_steps": 7})
    assert sweep._metrics(logged), "a free setting differs"
    assert not sweep._metrics(of._replace(changes={**of.changes, "flow.step_size": 0.1}))
    assert not sweep._metrics(of._replace(changes={**of.changes, "evaluate.num_samples": 9}))


def test_a_run_that_ends_without_output_is_reported(tmp_path, monkeypatch):
    of = planned()[0]._replace(folder=tmp_path)
    monkeypatch.setattr(sweep, "_PROGRAM", "import os; os.kill(os.getpid(), 9)")
    assert sweep.run_one("config.py", of) == sweep.Outcome("ended with -9", {})


@pytest.mark.slow
def test_the_command_runs_what_has_not_finished_and_reports_how_each_run_ended(tmp_path, capsys):
    (tmp_path / "own.py").write_text(
        f"def get_sweep():\n  return {{'config': '{ROOT / CONFIG}:tiny',\n"
        "    'groups': {'loss': {n: {'loss.name': n} for n in ('lr', 'lsif')}},\n"
        "    'metrics': ['energy_ratio']}\n"
    )
    arguments = [f"--sweep={tmp_path / 'own.py'}", f"--workdir={tmp_path / 'runs'}"]
    with pytest.raises(UserError, match="1 of 2 runs failed"):
        sweep.main(arguments)
    out = capsys.readouterr().out
    assert re.search(r"\| lr \| 1 \| [\d.]+ \|  \|", out)
    assert "seed 0: config: " in out
    assert "use 'lsif' with 'pearson'" in out
    assert (tmp_path / "runs" / "table.csv").is_file()
    written = (tmp_path / "runs/loss/lr/seed_0/output.txt").stat().st_mtime_ns
    with pytest.raises(UserError, match="1 of 2 runs failed"):
        sweep.main(arguments)
    assert capsys.readouterr().out.endswith(out[out.index("| loss") :])
    assert (tmp_path / "runs/loss/lr/seed_0/output.txt").stat().st_mtime_ns == written

"""Several processes train what one does; a checkpoint knows nothing of how many there were."""

import contextlib
import shutil

import chex
import jax
import numpy as np
import pytest
from experiments.request import Request
from experiments.storage.checkpoints import FREE_IN_TRAINING, Checkpoints
from experiments.storage.workdir import Workdir

from benchmarks.faults import program
from experiments import build, modes
from experiments.errors import PeerError, UserError
from experiments.machine import hosts
from experiments.training import loop
from fdrl_jax import parallel

CHANGES = {
    "optimizer.schedule": "constant",
    "train.num_steps": 60,
    "train.steps_per_dispatch": 10,
    "log.every_steps": 50,
    "checkpoint.every_steps": 50,
    "snapshot.every_steps": 1_000,
}


@pytest.mark.slow
def test_two_processes_train_what_one_does_and_one_goes_on_with_any_number_of_devices(
    tiny, tmp_path
):
    experiment = build.experiment(tiny(changes=CHANGES))
    Workdir(tmp_path / "alone").create()
    loop.train(experiment, Workdir(tmp_path / "alone"), "a command")

    log = tmp_path / "log"
    processes = program.start_processes(tmp_path / "4", CHANGES | {"train.num_steps": 50}, log)
    with contextlib.ExitStack() as stack:
        stack.callback(program.kill, *processes)
        program.wait_for_step(processes[0], tmp_path / "4", 50)
    shutil.copytree(tmp_path / "4", tmp_path / "1")
    for num_devices in (4, 1):
        program.train_to(tmp_path / str(num_devices), 60, log, CHANGES, num_devices)

    def state(name, step):
        store = Checkpoints(Workdir(tmp_path / name).checkpoints, keep=3)
        with contextlib.closing(store):
            template = jax.eval_shape(experiment.init_state)
            free = (*FREE_IN_TRAINING, "train.num_steps")
            return store.restore(template, experiment.settings, free, step)

    for name, step in (("4", 50), ("4", 60), ("1", 60)):
        chex.assert_trees_all_close(state(name, step), state("alone", step), rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_two_processes_draw_and_judge_the_samples_that_one_draws(trained, tiny, tmp_path):
    shutil.copytree(trained.root, tmp_path / "together")
    changes = {"sample.name": "drawn", "evaluate.batch_size": 8, "curve.lengths": "(0,3,5)"}
    for mode in ("sample", "curve"):
        flags = (f"--mode={mode}", "--num_samples=30")
        log = tmp_path / mode
        processes = program.start_processes(tmp_path / "together", changes, log, *flags)
        codes = [process.wait(600) for process in processes]
        assert codes == [0, 0], log.with_suffix(".0").read_text()
        config = tiny(changes=changes | {"curve.lengths": (0, 3, 5)})
        modes.run(Request(mode, config, trained.root, num_samples=30))

    one, two = Workdir(trained.root), Workdir(tmp_path / "together")
    drawn = [np.load(workdir.samples / "drawn.npz")["arr_0"] for workdir in (one, two)]
    np.testing.assert_allclose(*drawn, rtol=1e-4, atol=1e-5)
    curves = [
        np.loadtxt(w.curves / "length_step_4.csv", delimiter=",", skiprows=1) for w in (one, two)
    ]
    np.testing.assert_allclose(*curves, rtol=1e-2)


def test_flags_that_do_not_suffice_are_told():
    with pytest.raises(UserError, match="go together"):
        hosts.join("127.0.0.1:1", None, None, automatic=False, heartbeat_seconds=10)


def test_without_flags_nothing_is_joined():
    hosts.join(None, None, None, automatic=False, heartbeat_seconds=10)
    assert jax.process_count() == 1


def test_replicas_that_differ_in_a_bit_are_named():
    replicated = parallel.replicate({"a": jax.numpy.ones((3, 2)), "step": jax.numpy.int32(4)})
    hosts.check_agreement(replicated, 4)
    flipped = replicated["a"].at[2, 1, 1].set(1.0 + 2.0**-23)
    with pytest.raises(PeerError, match="at step 4 the replicas 2 of 8 do not hold"):
        hosts.check_agreement({**replicated, "a": flipped}, 4)

"""Whatever the config, a run works or ends with one line before training."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as fuzzing
from hypothesis import strategies as st
from PIL import Image
from small_runs import SMALL_RESNET, command, start

from configs import base
from experiments import build, modes, settings
from experiments.data import resolve_dir
from experiments.errors import UserError
from experiments.machine import memory
from experiments.modes import creation, dry_run
from experiments.settings import MAY_CHANGE, SETTINGS
from fdrl_jax.training import parallel, rng, steps

HOSTILE = [
    *(None, True, b"x", [], (), {}, {"a": 1}, [None], ["x"], [[1]], ((1,),), (1, 2), object(), 1j),
    *(0, -1, 1, 10**9, 2**31 - 1, 2**31, 2**63, 2**64, 10**400, -(10**400)),
    *(0.0, -0.0, -0.5, 0.999, 1.5, 1e30, 1.7e308, 5e-324, 1e-320),
    *(float("nan"), [float("nan")], float("inf"), -float("inf")),
    *("", "many", "\0", "a\nb", "\ud800", "x" * 10**5, "../x", "/", "*", "folder", "npz", "pair"),
    *("tfds:x", "tfds:", "tfds:../../etc", "tfds:/etc", "tfds:**", "tfds:\0", "~", "a" * 500),
    *("1e400*kl", "nan*kl", "-1*kl", "0*kl", "alpha:1e400"),
    *((65_536,) * 4, ((65_536, 8),), ((1, 1), (1, 1)), ((8, 2), (8, 9))),
]
# Settings whose extreme values are tried together in a traced step.
EXTREME = {
    key: [v for v in HOSTILE if settings.error_of(key, v) is None]
    for key in SETTINGS
    if not key.startswith("data.")
}
TRACED = [key for key, values in EXTREME.items() if values]


def built(flat):
    """Returns the experiment of flat settings, or `None` if they are rejected in a short line."""
    try:
        wanted = settings.checked(flat)
        return build.experiment(wanted, creation.load_data(wanted))
    except UserError as error:
        message = str(error)
    assert message.isprintable()
    assert len(message) < 2_000
    return None


def trace(experiment):
    """Runs everything before the first computation: shapes, and tracing of the step."""
    training = build.ratio_training(experiment)
    with contextlib.suppress(UserError):
        memory.check_state(training.state_shapes(), training.constants)
    repeated = steps.repeat_steps(training.train_step, 2)
    num = parallel.num_devices()
    state, constants = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct((num, *np.shape(a)), a.dtype),
        (training.state_shapes(), training.constants),
    )
    key = rng.root_key(training.settings["seed"])
    return jax.eval_shape(parallel.map_steps(repeated), key, state, constants, None, 1, 0)


@pytest.mark.parametrize("name", ["swissroll", "digits"])
def test_no_value_of_any_setting_ends_in_a_traceback(name, tiny, capfd):
    base = tiny(name)
    # Built-in sets read no settings of the data; one of them suffices to show it.
    keys = [key for key in SETTINGS if name == "swissroll" or not key.startswith("data.")]
    num_built = sum(built({**base, key: v}) is not None for key in keys for v in HOSTILE)
    assert num_built > 100


@pytest.mark.parametrize("key", [key for key in SETTINGS if key.startswith("data.")])
def test_no_value_of_a_setting_of_the_data_ends_in_a_traceback(key, tiny, tmp_path, capfd):
    for i in range(4):
        write_grey(tmp_path / "a" / f"{i}.png", i)
        write_grey(tmp_path / "b" / f"{i}.png", 100 + i)
    base = tiny("folder") | {"data.dir": str(tmp_path), "data.image_size": 8}
    classes = {"data.source_class": "a", "data.target_class": "b", "prior.name": "source"}
    assert built(base) is not None
    others = [{"data.name": "tfds:x"}, {"data.name": "npz"}] if key == "data.dir" else [classes]
    for changes in ({}, *others):
        for value in HOSTILE:
            # Limits memory, and uses no worker processes, whose start takes seconds.
            if (key, value) not in (("data.dir", "/"), ("data.num_workers", 1)):
                built({**base, "prior.rank": 2, **changes, key: value})


def write_grey(path, level):
    path.parent.mkdir(exist_ok=True)
    Image.new("L", (8, 8), level).save(path)


@given(data=st.data())
@fuzzing(derandomize=True, max_examples=25, deadline=None)
def test_extreme_values_together_are_refused_or_make_a_step(data, tiny):
    flat = tiny("swissroll")
    for key in data.draw(st.lists(st.sampled_from(TRACED), min_size=1, max_size=5)):
        flat[key] = data.draw(st.sampled_from(EXTREME[key]), label=key)
    experiment = built(flat)
    if experiment is not None:
        with contextlib.suppress(UserError):  # A batch that does not divide over the devices.
            trace(experiment)


def test_a_scale_that_is_zero_in_float32_is_refused_before_the_dry_run():
    with pytest.raises(UserError, match=r"prior\.scale must be a finite number above 0.*1e-320"):
        command("dry_run", None, "swissroll:tiny", {"prior.scale": 1e-320})


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        ("swissroll:tiny", {"network.hidden_sizes": (65_536,) * 4}),
        ("digits:tiny", {"network.blocks": ((65_536, 2), (65_536, 1))}),
    ],
)
def test_a_network_too_large_for_memory_is_refused_before_anything_is_allocated(
    config, changes, tmp_path
):
    with pytest.raises(
        UserError, match=r"parameters needs at least .* GiB are free here. Try a small"
    ):
        start("train", tmp_path / "run", config, changes)
    assert not (tmp_path / "run").exists()


def test_a_pair_that_cannot_run_is_refused_before_the_prior_is_fitted(
    image_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(creation.prior, "fit", lambda *_: pytest.fail("the prior was fitted"))
    changes = {"data.dir": image_folder, "data.image_size": 8, "loss.name": "lsif"}
    with pytest.raises(UserError, match="use 'lsif' with 'pearson'"):
        start("train", tmp_path / "run", "folder:tiny", {**changes, **SMALL_RESNET})


def test_a_step_too_large_for_memory_is_refused_before_it_runs(monkeypatch):
    monkeypatch.setattr(memory, "host_bytes", lambda: 8)
    x = np.arange(parallel.num_devices(), dtype=np.float32)
    with pytest.raises(UserError, match=r"the compiled train step needs at least .* GiB"):
        memory.checked(parallel.map_sampler(_doubled))(rng.root_key(0), x, x, x)


def test_a_checked_function_computes_what_it_computes_unchecked():
    double = memory.checked(parallel.map_sampler(_doubled))
    x = np.arange(parallel.num_devices(), dtype=np.float32)
    for _ in range(2):
        np.testing.assert_array_equal(double(rng.root_key(0), x, x, x), 2.0 * x)


def _doubled(key, variables, constants, batch):
    return 2.0 * batch


def test_out_of_memory_is_explained_and_other_errors_are_not(monkeypatch):
    def allocate(_):
        jnp.zeros(2**50, jnp.uint8).block_until_ready()

    def fail(_):
        raise RuntimeError("a defect")

    asked = command("dry_run", None, "swissroll:tiny")
    monkeypatch.setattr(dry_run, "run_mode", allocate)
    with pytest.raises(UserError, match=r"out of memory: .*Try a smaller network\.width"):
        modes.run(asked)
    monkeypatch.setattr(dry_run, "run_mode", fail)
    with pytest.raises(RuntimeError, match="a defect"):
        modes.run(asked)


@pytest.mark.parametrize("name", ["a/b", ".hidden", "a\nb", "x" * 201, "\u00e9" * 101])
def test_an_impossible_file_name_is_refused(name):
    assert "a file name without a folder" in settings.error_of("sample.name", name)
    assert settings.error_of("sample.name", "v1.5 of J\u00f6rg") is None


@pytest.mark.parametrize("value", [None, "x", float("nan"), float("inf"), -1, [], object()])
def test_every_rule_accepts_any_value_or_says_why_not(value):
    for key in SETTINGS:
        answer = settings.error_of(key, value)
        assert answer is None or (answer.startswith("must be ") and "got" in answer), key


def test_every_setting_has_a_default_that_is_allowed_and_a_meaning():
    defaults = settings.checked(settings.defaults())
    assert defaults.keys() == SETTINGS.keys()
    assert base.get_config().to_dict() == settings.defaults()
    for key, setting in SETTINGS.items():
        assert setting.about.endswith("."), key
        assert setting.scope in MAY_CHANGE, key
        assert MAY_CHANGE[setting.scope] in settings.explain(key)


def test_settings_equal_those_that_were_read_back_from_a_file():
    import json

    checked = settings.checked({**settings.checked(settings.defaults()), "flow.step_size": 3})
    assert json.loads(json.dumps(checked)) == checked
    assert isinstance(checked["flow.step_size"], float)


def test_the_home_folder_replaces_its_sign_in_every_path(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    checked = settings.checked(settings.defaults() | dict.fromkeys(settings.PATHS, "~/x"))
    assert {checked[key] for key in settings.PATHS} == {"/home/ada/x"}


def test_all_mistakes_are_named_together_with_the_nearest_key():
    wrong = {**settings.checked(settings.defaults()), "seed": -1, "flow.step_sise": 1}
    del wrong["flow.step_size"]
    with pytest.raises(UserError) as caught:
        settings.checked(wrong)
    for part in ("unknown key 'flow.step_sise'; did you mean", "missing key 'flow.step_size'"):
        assert part in str(caught.value)
    assert "seed must be a whole number" in str(caught.value)


def test_settings_of_an_earlier_version_are_completed_and_renamed():
    old = {"flow.num_steps": 7, "evaluate.num_judged_samples": 9}
    completed = settings.completed(old)
    assert completed["flow.num_steps"] == 7
    assert completed["evaluate.num_monitored_samples"] == 9
    assert completed["flow.step_size_decay"] == 1.0
    # A list, as `checked` returns it: otherwise the run could not be opened.
    assert completed["network.hidden_sizes"] == [64, 64, 64, 64]


@pytest.mark.parametrize("config", ["swissroll:tiny", "digits:tiny"])
@pytest.mark.parametrize(
    "change", [("data.image_size", 16), ("data.random_flip", True), ("data.center_crop", 4)]
)
def test_a_setting_that_does_nothing_for_built_in_data_is_refused(config, change):
    wanted = command("dry_run", None, config, dict([change])).config
    with pytest.raises(UserError, match=rf"{change[0]}={change[1]}: .* is a built-in set"):
        creation.load_data(settings.checked(wanted))


def test_the_variable_of_the_data_folder_is_read_and_never_stored(monkeypatch, tiny):
    monkeypatch.setenv("FDRL_DATA_DIR", "/of/this/machine")
    assert resolve_dir("") == "/of/this/machine"
    assert resolve_dir("/given") == "/given"
    assert tiny("folder")["data.dir"] == ""

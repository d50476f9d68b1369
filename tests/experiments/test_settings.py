"""Whatever the config, a run works or ends with one line before training."""

import contextlib
import dataclasses
import json
from typing import get_args

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as fuzzing
from hypothesis import strategies as st
from PIL import Image

from configs import base
from experiments import experiment, settings
from experiments.data import load
from experiments.errors import UserError
from experiments.settings import DECLARED, MAY_CHANGE, Settings
from fdrl_jax.training import parallel, rng

HOSTILE = [
    *(None, True, b"x", [], (), {}, [None], ["x"], [[1]], ((1,),), (1, 2), object(), 1j),
    *(0, -1, 1, 10**9, 2**31 - 1, 2**31, 2**63, 2**64, 10**400, -(10**400)),
    *(0.0, -0.0, -0.5, 0.999, 1.5, 1e30, 1.7e308, 5e-324, 1e-320),
    *(float("nan"), [float("nan")], float("inf"), -float("inf")),
    *("", "many", "\0", "a\nb", "\ud800", "x" * 10**5, "../x", "/", "*", "folder", "npz", "pair"),
    *("tfds:x", "tfds:", "tfds:../../etc", "tfds:/etc", "tfds:**", "tfds:\0", "~", "a" * 500),
    *("1e400*kl", "nan*kl", "-1*kl", "0*kl", "alpha:1e400"),
    *((65_536,) * 4, ((65_536, 8),), ((1, 1), (1, 1)), ((8, 2), (8, 9))),
]


def error_of(key, value):
    """Returns why a value is not allowed, or `None`."""
    try:
        settings.from_config({key: value})
    except UserError as error:
        return checked(error)
    return None


def checked(error):
    """Returns the message of an error after checking that it is a line that can be printed."""
    message = str(error)
    assert message.isprintable()
    assert len(message) < 2_000
    return message


# Settings whose extreme values are tried together in a traced step.
EXTREME = {
    key: values
    for key in DECLARED
    if not key.startswith("data.") and (values := [v for v in HOSTILE if error_of(key, v) is None])
}


def built(flat):
    """Returns the experiment of settings, or `None` if they are rejected in a short line."""
    try:
        wanted = settings.from_config(flat)
        return experiment.build(wanted, load(wanted.data))
    except UserError as error:
        checked(error)
    return None


def trace(model):
    """Runs everything before the first computation: shapes, and tracing of the step."""
    short = settings.replace(model.settings, {"train.steps_per_dispatch": 2})
    model = dataclasses.replace(model, settings=short)
    num = parallel.num_devices()
    state, constants = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct((num, *np.shape(a)), a.dtype),
        (model.state_shapes(), model.constants),
    )
    key = rng.root_key(model.settings.seed)
    step = parallel.map_steps(model.repeated_step())
    return jax.eval_shape(step, key, state, constants, None, 1, 0)


@pytest.mark.parametrize("name", ["swissroll", "digits"])
def test_no_value_of_any_setting_ends_in_a_traceback(name, tiny, capfd):
    flat = settings.to_flat(tiny(name))
    # Built-in sets read no settings of the data; one of them suffices to show it.
    keys = [key for key in DECLARED if name == "swissroll" or not key.startswith("data.")]
    num_built = sum(built({**flat, key: v}) is not None for key in keys for v in HOSTILE)
    assert num_built > 100


@pytest.mark.parametrize("key", [key for key in DECLARED if key.startswith("data.")])
def test_no_value_of_a_setting_of_the_data_ends_in_a_traceback(key, tiny, tmp_path, capfd):
    for i in range(4):
        for side, level in (("a", i), ("b", 100 + i)):
            (tmp_path / side).mkdir(exist_ok=True)
            Image.new("L", (8, 8), level).save(tmp_path / side / f"{i}.png")
    changes = {"data.dir": str(tmp_path), "data.image_size": 8, "prior.rank": 2}
    flat = settings.to_flat(tiny("folder", changes))
    classes = {"data.source_class": "a", "data.target_class": "b", "prior.name": "source"}
    assert built(flat) is not None
    others = [{"data.name": "tfds:x"}, {"data.name": "npz"}] if key == "data.dir" else [classes]
    for more in ({}, *others):
        for value in HOSTILE:
            # Neither reads the whole disk nor asks the network for a data set.
            if value != "/" and not str(value).startswith("tfds:"):
                built({**flat, **more, key: value})


@given(data=st.data())
@fuzzing(derandomize=True, max_examples=25, deadline=None)
def test_extreme_values_together_are_refused_or_make_a_step(data, tiny):
    flat = settings.to_flat(tiny("swissroll"))
    for key in data.draw(st.lists(st.sampled_from(sorted(EXTREME)), min_size=1, max_size=5)):
        flat[key] = data.draw(st.sampled_from(EXTREME[key]), label=key)
    model = built(flat)
    if model is not None:
        with contextlib.suppress(UserError):  # A batch that does not divide over the devices.
            trace(model)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("optimizer.learning_rate", 1e-320, r"and at most 10\.0, got 1e-320 \(it is too small"),
        ("seed", -1, "a whole number at least 0 and at most 2,147,483,647, got -1"),
        ("seed", True, "a whole number"),
        ("loss.name", "lsig", "one of lsif, lr, ukl, got 'lsig'; did you mean 'lsif'"),
        ("network.blocks", ((1, 2, 3),), "pairs of channels and stride such as"),
        ("data.channels", 2, r"0 \(as stored\), 1 \(grey\) or 3 \(colour\), got 2"),
        ("loss.divergence", "kll", "did you mean 'kl'"),
        ("optimizer.boundaries", (3, 3), "increasing whole numbers such as"),
        ("flow.step_sise", 1.0, "unknown key 'flow.step_sise'; did you mean 'flow.step_size'"),
    ],
)
def test_a_value_that_is_not_allowed_is_named_with_what_is(key, value, expected):
    with pytest.raises(UserError, match=expected):
        settings.from_config({key: value})


def test_all_mistakes_are_named_together():
    message = error_of("seed", -1)
    with pytest.raises(UserError) as caught:
        settings.from_config({"seed": -1, "flow": {"step_sise": 1, "num_steps": "x"}})
    assert message.removeprefix("config: ") in str(caught.value)
    assert "unknown key 'flow.step_sise'" in str(caught.value)
    assert "flow.num_steps must be a whole number" in str(caught.value)


def test_every_setting_has_a_default_that_is_allowed_and_a_meaning():
    defaults = settings.from_config(settings.defaults())
    assert defaults == Settings()
    assert settings.to_flat(defaults).keys() == DECLARED.keys()
    assert base.get_config().to_dict() == settings.defaults()
    for key, declared in DECLARED.items():
        assert declared.about.endswith("."), key
        assert declared.allowed, key
        assert MAY_CHANGE[declared.scope] in settings.explain(key)


def test_a_number_that_is_whole_is_a_real_number_too_and_lists_are_tuples():
    found = settings.from_config({"flow.step_size": 3, "network": {"hidden_sizes": [8, 8]}})
    assert isinstance(found.flow.step_size, float)
    assert found.network.hidden_sizes == (8, 8)
    assert settings.from_config({"network.blocks": [[4, 2]]}).network.blocks == ((4, 2),)


def test_settings_equal_those_that_were_read_back_from_a_file():
    found = settings.from_config({"flow.step_size": 4, "network.blocks": ((4, 2),)})
    stored = json.loads(json.dumps(settings.to_flat(found)))
    assert settings.from_config(stored) == found
    assert settings.changed(found) == {"flow.step_size": 4.0, "network.blocks": [[4, 2]]}


def test_settings_are_grouped_by_when_they_may_change():
    of_scopes = [settings.of_scope(Settings(), scope) for scope in get_args(settings.Scope)]
    assert sum(map(len, of_scopes)) == len(DECLARED)
    assert settings.of_scope(Settings(), "flow", "free") == {**of_scopes[2], **of_scopes[3]}
    assert "data.name" in of_scopes[0]
    assert of_scopes[2].keys() == {
        *(key for key in DECLARED if key.startswith("flow.")),
        "seed",
    }


def test_the_home_folder_replaces_its_sign_in_every_path_and_shared_settings_have_none(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    found = settings.from_config(dict.fromkeys(settings.PATHS, "~/x"))
    flat = settings.to_flat(found)
    assert {flat[key] for key in settings.PATHS} == {"/home/ada/x"}
    assert settings.shareable(found).keys() == DECLARED.keys() - set(settings.PATHS)

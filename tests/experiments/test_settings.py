"""Whatever the config, a run works or ends with one line before training."""

import json

import pytest

from configs import base
from experiments import experiment, settings
from experiments.data import load
from experiments.errors import UserError
from experiments.settings import DECLARED, MAY_CHANGE, Settings

HOSTILE = [
    *(None, True, b"x", [], (), {}, [None], ["x"], [[1]], ((1,),), (1, 2), object(), 1j),
    *(0, -1, 1, 2**31 - 1, 2**31, 2**64, 10**400, -(10**400)),
    *(0.0, -0.0, -0.5, 0.999, 1.5, 1e30, 1.7e308, 5e-324, float("nan"), float("inf")),
    *("", "many", "\0", "a\nb", "\ud800", "x" * 10**5, "../x", "/", "folder", "npz", "pair"),
    *("tfds:", "tfds:../../etc", "alpha:1e400", ((8, 2), (8, 9))),
]


def refused(flat):
    """Returns the message of a refusal after checking that it is a printable line, or `None`."""
    try:
        wanted = settings.from_config(flat)
        source = load(wanted.data)
        experiment.build(experiment.for_shape(wanted, source.event_shape), source)
    except MemoryError:  # The program ends with one line.
        return "too large"
    except UserError as error:
        message = str(error)
        assert message.isprintable()
        assert len(message) < 2_000
        return message
    return None


def test_no_value_of_any_setting_ends_in_a_traceback(tiny, capfd):
    flat = settings.to_flat(tiny("swissroll"))
    num_built = sum(refused({**flat, key: v}) is None for key in DECLARED for v in HOSTILE)
    assert num_built > 100


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("optimizer.learning_rate", 0, r"a finite number, at least 1e-12 and at most 10\.0, got 0"),
        ("seed", -1, "a whole number, at least 0, got -1"),
        ("loss.name", "lsig", "one of lsif, lr, ukl, got 'lsig'; did you mean 'lsif'"),
        ("network.blocks", ((1, 2, 3),), "pairs of channels and stride such as"),
        ("loss.divergence", "kll", "did you mean 'kl'"),
        ("optimizer.boundaries", (3, 3), "increasing whole numbers such as"),
        ("flow.step_sise", 1.0, "unknown key 'flow.step_sise'; did you mean 'flow.step_size'"),
    ],
)
def test_a_value_that_is_not_allowed_is_named_with_what_is(key, value, expected):
    with pytest.raises(UserError, match=expected) as caught:
        settings.from_config({"flow.num_steps": "x", key: value})
    assert "flow.num_steps must be a whole number" in str(caught.value), "all mistakes are named"


def test_every_setting_has_a_default_that_is_allowed_and_a_meaning():
    defaults = settings.from_config(settings.defaults())
    assert defaults == Settings()
    assert settings.from_config(json.loads(json.dumps(settings.to_flat(defaults)))) == Settings()
    assert base.get_config().to_dict() == settings.defaults()
    for key, declared in DECLARED.items():
        assert declared.about.endswith("."), key
        assert MAY_CHANGE[declared.scope] in settings.explain(key)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_settings_of_each_verb_may_change_and_no_others(schedule):
    saved = settings.from_config({"optimizer.schedule": schedule})
    changes = {"log.every_steps": 7, "flow.step_size": 0.5, "network.width": 8}
    changes |= {"optimizer.learning_rate": 0.1, "train.num_steps": 9}
    wanted = settings.replace(saved, changes)
    of_train = {"log.every_steps", "optimizer.learning_rate"}
    of_train |= {"train.num_steps"} if schedule == "constant" else set()
    for verb, allowed in (("train", of_train), ("sample", {"log.every_steps", "flow.step_size"})):
        refused = settings.differences(saved, wanted, verb)
        assert {text.split()[0] for text in refused} == changes.keys() - allowed


def test_the_home_folder_replaces_its_sign_in_every_path_and_shared_settings_have_none(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    found = settings.from_config(dict.fromkeys(settings.PATHS, "~/x"))
    flat = settings.to_flat(found)
    assert {flat[key] for key in settings.PATHS} == {"/home/ada/x"}
    assert settings.shareable(found).keys() == DECLARED.keys() - set(settings.PATHS)

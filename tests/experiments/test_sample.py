"""Mode sample: files for other programs, records that distinguish them, classes, and kills."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import command, contents, start

from experiments import draw, prior
from experiments.data import load
from experiments.errors import UserError
from experiments.experiment import build
from experiments.run import open_checkpoint
from experiments.sample import conditioned, labels_of
from fdrl_jax.training import parallel

NUM, NUM_PRIOR = 50, 10


@pytest.fixture
def drawn(capsys):
    """Returns `(run, changes, flags) -> (samples, path)` of mode sample."""

    def sample(run, changes=None, num_samples=20, **flags):
        capsys.readouterr()
        start("sample", run.root, None, changes, num_samples=num_samples, **flags)
        path = capsys.readouterr().out.split(".npz")[0].split(": ")[1] + ".npz"
        return np.load(path)["arr_0"], run.root / path

    return sample


def test_samples_are_those_of_the_checkpoint_and_do_not_depend_on_their_number(trained, drawn):
    points, path = drawn(trained, num_samples=50)
    opened = open_checkpoint(command("sample", trained.root))
    expected = draw.sample_state(opened.experiment, opened.state, 50).refined
    np.testing.assert_array_equal(points, expected)
    few, _ = drawn(trained, num_samples=3)
    np.testing.assert_allclose(few, points[:3], rtol=1e-5, atol=1e-6)
    other, other_path = drawn(trained, num_samples=50, checkpoint=2)
    assert other_path.name.startswith("step_2-")
    assert np.abs(other - points).max() > 0
    assert path.with_suffix(".png").stat().st_size > 1_000


def test_samples_of_other_settings_are_added_and_recorded_and_none_is_drawn_again(
    trained, drawn, monkeypatch
):
    _, path = drawn(trained)
    before = contents(trained.samples)
    wilder, other = drawn(trained, {"flow.noise_scale": 0.5})
    recorded = json.loads(other.with_suffix(".json").read_text())["key"]["settings"]
    assert (path != other, recorded["flow.noise_scale"]) == (True, 0.5)
    assert contents(trained.samples).items() > before.items()
    other.unlink()  # A kill before the file was complete.
    np.testing.assert_array_equal(drawn(trained, {"flow.noise_scale": 0.5})[0], wilder)
    monkeypatch.setattr(draw, "sample_state", lambda *_, **__: pytest.fail("drawn again"))
    assert drawn(trained)[1] == path
    content = path.read_bytes()
    path.write_bytes(content.replace(b"arr_0", b"arr_1"))
    with pytest.raises(UserError, match="is damaged; remove it to draw these samples again"):
        drawn(trained)
    path.write_bytes(content)


def test_samples_of_a_ratio_per_class_are_of_all_classes_in_turn_or_of_one(by_class, drawn):
    every, _ = drawn(by_class)
    sevens, _ = drawn(by_class, **{"class": "7"})
    np.testing.assert_allclose(every[7::10].astype(int), sevens[7::10].astype(int), atol=1)
    different = np.abs(every.astype(int) - sevens.astype(int)).max(axis=(1, 2, 3)) > 1
    assert different.sum() > 15, "other classes differ"


@pytest.mark.slow
def test_a_classifier_guides_sample_i_of_all_classes_as_that_of_class_i(
    of_digits, classifier_of_digits, drawn
):
    def of_class(label, weight):
        flags = {"classifier": classifier_of_digits, "class": label, "num_samples": 16}
        return drawn(of_digits, {"condition.weight": weight}, **flags)[0].astype(int)

    every, sevens = of_class("all", 5.0), of_class("7", 5.0)
    np.testing.assert_allclose(every[7], sevens[7], atol=1)
    assert np.abs(every[8] - sevens[8]).max() > 1
    assert np.abs(of_class("7", 0.0) - sevens).max() > 1, "another weight draws other samples"


def test_a_classifier_chooses_the_components_where_samples_start(tiny):
    wanted = tiny("digits", {"prior.num_components": 10})
    source = load(wanted.data)
    model = build(wanted, source, prior.fit_to(source, wanted.prior, 0))
    state = model.init_state()
    means = np.asarray(model.constants.prior["mean"])

    def nearest(_, x):  # Class c is what is nearest to the mean of component 9 - c.
        distances = jnp.square(x.reshape(-1, 1, 64) - means[::-1]).sum(axis=-1)
        return -10.0 * distances

    of_class = conditioned(model, "all", (nearest, ()), 1.0)
    for drawn_from, is_chosen in ((of_class, True), (model, False)):
        x0 = draw.sample_state(drawn_from, state, 0, num_prior=100).prior
        found = np.asarray(nearest((), x0)).argmax(axis=-1)
        assert ((found == np.arange(100) % 10).mean() > 0.9) == is_chosen


def test_flags_of_classes_that_do_not_fit_are_explained(of_digits):
    for flags, message in (
        ({"class": "3"}, "--class=3 needs --classifier"),
        ({"classifier": "x"}, "--classifier guides samples of a class: add --class=NAME"),
        ({"class": "3", "classifier": "/nowhere"}, "nowhere is not the folder of a classifier"),
    ):
        with pytest.raises(UserError, match=message):
            start("sample", of_digits.root, None, num_samples=2, **flags)


def test_a_class_is_given_by_name_or_number_and_the_error_suggests_the_nearest():
    classes = ("cat", "dog", "7")
    # A name comes before a number.
    for name, labels in (("dog", [1] * 4), ("0", [0] * 4), ("7", [2] * 4), ("all", [0, 1, 2, 0])):
        assert labels_of(name, classes)(np.arange(4)).tolist() == labels
    with pytest.raises(UserError, match=r"did you mean 'dog'\?.*a number from 0 to 2, or all"):
        labels_of("doge", classes)
    with pytest.raises(UserError, match="the data have no classes"):
        labels_of("3", ())


def test_samples_that_are_not_finite_are_refused_and_nothing_is_written(trained, drawn):
    before = {path.name for path in trained.samples.glob("*")}
    with pytest.raises(UserError, match="not finite numbers, so nothing was written"):
        drawn(trained, {"flow.step_size": 1e38, "flow.noise_scale": 1e38})
    assert {path.name for path in trained.samples.glob("*")} == before


def test_other_stages_and_samples_never_leave_the_device(trained, monkeypatch):
    opened = open_checkpoint(command("sample", trained.root))
    model, state = opened.experiment, opened.state
    whole = draw.sample_state(model, state, NUM, num_prior=NUM, num_bridged=NUM)
    fetched, gather = [], parallel.gather
    monkeypatch.setattr(parallel, "gather", lambda part: fetched.append(part.size) or gather(part))
    some = draw.sample_state(model, state, NUM, num_prior=NUM_PRIOR)
    assert [len(stage) for stage in some] == [NUM_PRIOR, 0, NUM]
    np.testing.assert_array_equal(some.prior, whole.prior[:NUM_PRIOR])
    np.testing.assert_allclose(some.refined, whole.refined, rtol=1e-5, atol=1e-6)
    size = draw.positions(model, NUM).shape[1]
    assert NUM_PRIOR < size < NUM
    assert fetched == [2 * size] * (1 + -(-NUM // size)), "all refined ones, one batch of the prior"
    only = draw.sample_state(model, state, 0, num_prior=NUM)
    np.testing.assert_array_equal(only.prior, whole.prior)
    path = draw.paths(model, state, 4)
    for step, stage in zip((0, 3, 4), whole, strict=True):
        np.testing.assert_allclose(path[step], stage[:4], rtol=1e-5, atol=1e-6)

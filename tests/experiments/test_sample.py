"""Mode sample: files for other programs, records that distinguish them, and kills."""

import json
import re
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from small_runs import contents, start

from experiments import draw, prior
from experiments.data import load
from experiments.errors import UserError
from experiments.experiment import build
from experiments.sample import conditioned, labels_of


def sample(run, num_samples=20, **changes):
    start("sample", run.root, None, changes, num_samples=num_samples)


def named(name, **changes):
    return {"sample.name": name, **changes}


def drawn(run, name):
    return np.load(run.samples / f"{name}.npz")["arr_0"]


def record(run, name):
    return json.loads((run.samples / f"{name}.npz.json").read_text())


def test_samples_are_from_the_newest_checkpoint_or_the_named_one(trained, capsys):
    start("sample", trained.root, num_samples=10)
    assert "10 samples of step 4" in capsys.readouterr().out
    start("sample", trained.root, num_samples=10, checkpoint=2)
    newest, older = drawn(trained, "step_4"), drawn(trained, "step_2")
    assert newest.shape == older.shape == (10, 2)
    assert not np.array_equal(newest, older)
    assert (trained.samples / "step_4.npz.picture.png").exists()


def test_rejection_reports_how_many_samples_it_accepts(trained, capsys):
    sample(trained, 10, **named("all_kept"))
    assert "accepts" not in capsys.readouterr().out
    sample(trained, 10, **named("some_rejected", **{"sample.rejection": True}))
    found = re.search(r"rejection accepts (\d+)% of the samples", capsys.readouterr().out)
    assert found
    assert 0 < int(found[1]) <= 100


def test_samples_of_other_settings_are_added_and_none_is_replaced(trained):
    start("sample", trained.root, num_samples=10)
    before = contents(trained.samples)
    start("sample", trained.root, num_samples=12)
    start("sample", trained.root, None, {"flow.num_steps": 5}, num_samples=10)
    after = contents(trained.samples)
    assert after.items() >= before.items()
    records = [
        json.loads(v) for k, v in after.items() if k.startswith("step_4") and k.endswith(".json")
    ]
    found = {(r["key"]["num_samples"], r["key"]["settings"]["flow.num_steps"]) for r in records}
    assert found == {(10, 3), (12, 3), (10, 5)}
    start("sample", trained.root, num_samples=10)
    assert contents(trained.samples) == after  # These exist already.


def test_a_sample_does_not_depend_on_how_many_are_drawn_with_it(trained):
    sample(trained, 5, **named("five", **{"evaluate.batch_size": 5}))
    sample(trained, 21, **named("more", **{"evaluate.batch_size": 8}))
    np.testing.assert_allclose(
        drawn(trained, "five"), drawn(trained, "more")[:5], rtol=1e-5, atol=1e-6
    )


def test_settings_of_sampling_change_the_samples_and_are_recorded_next_to_them(trained):
    flow = {"num_steps": 5, "num_refine_steps": 4, "step_size": 0.2, "noise_scale": 0.3}
    changes = {
        "plain": {},
        "raw": {"sample.weights": "raw"},
        "other": {"seed": 7} | {f"flow.{key}": value for key, value in flow.items()},
    }
    for name, change in changes.items():
        sample(trained, **named(name, **change))
        found = record(trained, name)["key"]
        assert found["settings"].items() >= change.items()
        assert (found["step"], found["num_samples"], found["run"]) == (4, 20, trained.id)
    assert len({drawn(trained, name).tobytes() for name in changes}) == len(changes)


def test_a_name_with_other_samples_or_a_users_files_is_refused(trained):
    sample(trained, **named("chosen"))
    before = contents(trained.samples)
    with pytest.raises(UserError, match=r"chosen\.npz exists and contains other samples"):
        sample(trained, 21, **named("chosen"))
    assert contents(trained.samples) == before


@pytest.mark.slow
def test_all_formats_have_the_same_pixels_and_equal_samples_give_equal_bytes(of_digits, tmp_path):
    for name, file_format, size in (
        ("a.npz", "npz", 3),  # A name with a dot is not a format.
        ("b.npz", "npz", 8),
        ("a", "zip", 3),
        ("b", "zip", 8),
    ):
        changes = {"sample.format": file_format, "evaluate.batch_size": size}
        sample(of_digits, 10, **named(name, **changes))
    pixels = drawn(of_digits, "a.npz")
    assert (pixels.dtype, pixels.shape) == (np.uint8, (10, 8, 8, 1))
    with zipfile.ZipFile(of_digits.samples / "a.zip") as archive:
        archive.extractall(tmp_path)
    pngs = sorted(tmp_path.iterdir())
    assert [png.name for png in pngs] == [f"00000{i}.png" for i in range(10)]
    read = np.stack([np.asarray(Image.open(png)) for png in pngs])
    np.testing.assert_array_equal(read[..., None], pixels)
    for one, other in (("a.npz.npz", "b.npz.npz"), ("a.zip", "b.zip")):
        names = (of_digits.samples / one, of_digits.samples / other)
        assert names[0].read_bytes() == names[1].read_bytes()


@pytest.mark.slow
def test_one_sample_can_be_drawn_in_each_format(trained, of_digits):
    sample(trained, 1, **named("one"))
    assert drawn(trained, "one").shape == (1, 2)
    sample(of_digits, 1, **named("one"))
    assert drawn(of_digits, "one").shape == (1, 8, 8, 1)
    sample(of_digits, 1, **named("one", **{"sample.format": "zip"}))
    with zipfile.ZipFile(of_digits.samples / "one.zip") as archive:
        assert archive.namelist() == ["000000.png"]


def test_points_are_not_written_as_pictures(trained):
    with pytest.raises(UserError, match="'zip' is for images; use 'npz' for points"):
        sample(trained, **{"sample.format": "zip"})


def test_interrupted_sampling_leaves_nothing_and_the_same_command_writes_the_same_files(
    trained, monkeypatch
):
    small = {"evaluate.batch_size": 8}
    sample(trained, 30, **named("whole", **small))
    call, firsts = draw.Sampler.__call__, []

    def failing(sampler, *arguments, **options):
        firsts.append(options.get("first"))
        if options.get("first") == 16:
            raise KeyboardInterrupt
        return call(sampler, *arguments, **options)

    with monkeypatch.context() as within:
        within.setattr(draw.Sampler, "__call__", failing)
        with pytest.raises(KeyboardInterrupt):
            sample(trained, 30, **named("cut", **small))
    assert firsts == [None, 0, 8, 16], "the starts, then the samples"
    assert not [path for path in trained.samples.iterdir() if "cut" in path.name]
    sample(trained, 30, **named("cut", **small))
    for suffix in (".npz", ".npz.json", ".npz.picture.png"):
        one, other = ((trained.samples / f"{n}{suffix}").read_bytes() for n in ("whole", "cut"))
        assert one == other
    monkeypatch.setattr(draw.Sampler, "__call__", failing)
    sample(trained, 30, **named("cut", **small))
    assert len(firsts) == 4  # Finished samples are not drawn again.


def test_samples_whose_file_is_missing_are_drawn_again(trained):
    """A kill between record and file, whose record is written first."""
    sample(trained, 10, **named("gone"))
    before = drawn(trained, "gone")
    (trained.samples / "gone.npz").unlink()
    sample(trained, 10, **named("gone"))
    np.testing.assert_array_equal(drawn(trained, "gone"), before)


def test_samples_that_are_not_finite_are_refused_and_nothing_is_written(trained):
    with pytest.raises(UserError, match="not finite numbers, so nothing was written"):
        sample(trained, **named("wild", **{"flow.step_size": 1e38, "flow.noise_scale": 1e38}))
    assert not list(trained.samples.glob("wild.npz*"))


def test_more_samples_than_positions_are_refused_before_anything_is_drawn(trained):
    with pytest.raises(UserError, match=r"at most 2,147,483,648 samples"):
        sample(trained, 2**31 + 1)


@pytest.mark.slow
def test_sample_i_of_all_classes_is_that_of_class_i_and_each_has_a_row_in_the_picture(
    of_digits, classifier_of_digits, capsys
):
    def of_class(label, weight):
        flags = {"classifier": classifier_of_digits, "class": label, "num_samples": 16}
        start("sample", of_digits.root, None, {"condition.weight": weight}, **flags)
        return np.load(capsys.readouterr().out.split(": ")[1].split("\n")[0])["arr_0"].astype(int)

    every, sevens = of_class("all", 5.0), of_class("7", 5.0)
    assert every.shape == sevens.shape == (16, 8, 8, 1)
    np.testing.assert_allclose(every[7], sevens[7], atol=1)
    assert np.abs(every[8] - sevens[8]).max() > 1
    assert (of_digits.samples / "step_4_class_all.npz.picture.png").exists()
    assert np.abs(of_class("7", 0.0) - sevens).max() > 1, "another weight draws other samples"
    np.testing.assert_array_equal(of_class("7", 5.0), sevens)  # And replaces none.


def test_a_classifier_chooses_the_components_where_samples_start(tiny):
    wanted = tiny("digits", {"prior.num_components": 10, "condition.label": "all"})
    source = load(wanted.data)
    model = build(wanted, source, prior.fit_to(source, wanted.prior, 0))
    state = model.init_state()
    means = np.asarray(model.constants.prior["mean"])

    def nearest(_, x):  # Class c is what is nearest to the mean of component 9 - c.
        distances = jnp.square(x.reshape(-1, 1, 64) - means[::-1]).sum(axis=-1)
        return -10.0 * distances

    of_class = conditioned(model, (nearest, ()))
    x0 = draw.sample_starts(of_class, state, 100)
    found = np.asarray(nearest((), x0)).argmax(axis=-1)
    assert (found == np.arange(100) % 10).mean() > 0.9
    x0 = draw.sample_starts(model, state, 100)
    found = np.asarray(nearest((), x0)).argmax(axis=-1)
    assert (found == np.arange(100) % 10).mean() < 0.3


@pytest.mark.parametrize(
    ("key", "label", "message"),
    [
        ("flow.num_refine_steps", "3", "no effect with --class=3; set condition.num_refine_steps"),
        ("condition.weight", "", "condition.weight: needs --class=NAME or --class=all"),
        ("condition.weight", "3", "--class=3 needs --classifier"),
    ],
)
def test_a_change_without_an_effect_is_an_error(of_digits, key, label, message):
    with pytest.raises(UserError, match=message):
        start("sample", of_digits.root, None, {key: 2}, num_samples=2, **{"class": label})


def test_a_class_is_given_by_name_or_number_and_the_error_suggests_the_nearest():
    classes, positions = ("airplane", "bird", "cat", "horse"), np.arange(12)
    for name in ("cat", "2"):
        np.testing.assert_array_equal(labels_of(name, classes)(positions), 2)
    np.testing.assert_array_equal(labels_of("all", classes)(positions), positions % 4)
    with pytest.raises(UserError, match=r"did you mean 'horse'.*Allowed: airplane, .* 0 to 3"):
        labels_of("hors", classes)
    with pytest.raises(UserError, match="the data have no classes"):
        labels_of("cat", ())

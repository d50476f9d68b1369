"""The page in which points flow: its script computes what the library does, and it is complete."""

import importlib
import json
import re
import shutil
import subprocess
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import fdrl_jax as fdrl
from docs import flow_page
from experiments.data import built_in as points

NODE = shutil.which("node")
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
NUM_POINTS = 200
# Evaluates and flows the points of each model, as the page does.
SCRIPT = """
const flow = require("./flow.js"), models = require("./models.js");
const asked = JSON.parse(require("fs").readFileSync(0));
const found = {};
for (const [name, { starts, noiseScale }] of Object.entries(asked)) {
  const { sizes, weights, flow: settings } = models[name];
  const layers = flow.network(sizes, flow.floats(weights));
  const gradients = starts.map((x) => new Float64Array(x.length));
  const values = starts.map((x, i) => flow.logRatio(layers, x, gradients[i]));
  const swarm = new flow.Swarm(layers, flow.normals(flow.uniforms(0)));
  starts.forEach((x) => swarm.add(x));
  while (!swarm.step({ ...settings, noiseScale: noiseScale ?? settings.noiseScale }));
  found[name] = {
    values, gradients: gradients.map((g) => [...g]), ends: swarm.points.map(({ x }) => [...x]),
    means: swarm.meanLogRatios,
  };
}
process.stdout.write(JSON.stringify(found));
"""
needs_node = pytest.mark.skipif(NODE is None, reason="needs Node.js, which runs the page's script")


def starts_of(model):
    """Points from where training starts, and for the plane also from further away."""
    size = model.sizes[0]
    noise = np.random.default_rng(0).normal(size=(NUM_POINTS, size))
    if "factor" not in model.arrays:
        return noise.astype(np.float32)
    factor = model.arrays["factor"].reshape(size, size)
    return (model.arrays["mean"] + noise @ factor.T).astype(np.float32)


def run_script(models, noise_scale=None):
    asked = {
        name: {"starts": starts_of(model).tolist(), "noiseScale": noise_scale}
        for name, model in models.items()
    }
    ran = subprocess.run(
        [NODE, "-e", SCRIPT],
        cwd=flow_page.FOLDER,
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(ran.stdout)


@pytest.fixture(scope="module")
def models():
    return flow_page.read()


@needs_node
def test_log_ratio_gradient_and_flow_of_the_page_are_those_of_the_library(models):
    found = run_script(models, noise_scale=0.0)
    for name, model in models.items():
        network, variables = flow_page.unflatten(model)
        log_ratio = jax.tree_util.Partial(network.apply, variables)
        x0, of_page = starts_of(model), found[name]
        values, drift = log_ratio(x0), fdrl.langevin.drift(x0, log_ratio)
        np.testing.assert_allclose(of_page["values"], values, atol=1e-4)
        np.testing.assert_allclose(of_page["gradients"], -drift, atol=1e-4)
        assert np.abs(drift).max() > 0.01
        # In float64, as in JavaScript: rounding decides on which side of a kink a point is.
        ends = flow_in_float64(model, x0)
        np.testing.assert_allclose(of_page["ends"], ends, atol=1e-9)
        assert np.abs(ends - x0).mean() > 0.1
        means = of_page["means"]
        assert len(means) == model.flow["length"] + 1
        np.testing.assert_allclose(means[0], values.mean(), atol=1e-4)
        np.testing.assert_allclose(means[-1], log_ratio(ends).mean(), atol=1e-4)


def flow_in_float64(model, x0):
    with jax.enable_x64(True):
        _, variables = flow_page.unflatten(model)
        network = fdrl.networks.MLP(tuple(model.sizes[1:-1]), dtype="float64")
        log_ratio = jax.tree_util.Partial(network.apply, variables)
        ends = fdrl.flow(
            jax.random.key(0),
            np.asarray(x0, np.float64),
            fdrl.first_variation(log_ratio, "kl", output="log_ratio"),
            num_steps=model.flow["length"],
            step_size=model.flow["stepSize"],
            noise_scale=0.0,
        )
        return np.asarray(ends)


@needs_node
@pytest.mark.parametrize("name", flow_page.TARGETS)
def test_points_of_the_page_end_within_four_sigma_of_the_data(models, name):
    ends = np.asarray(run_script({name: models[name]})[name]["ends"])
    assert share_near(models[name], ends) > 0.97
    assert share_near(models[name], starts_of(models[name])) < 0.2


def share_near(model, x, num_sigmas=4.0):
    centres = model.arrays["centres"].reshape(-1, 2)
    distances = np.linalg.norm(x[:, None] - centres, axis=-1).min(axis=1)
    return np.mean(distances <= num_sigmas * model.sigma)


@pytest.mark.parametrize("name", flow_page.TARGETS)
def test_the_centres_of_the_page_are_those_of_the_data(models, name):
    real = points.POINTS[name]().held_out(2_000, 0)
    assert share_near(models[name], real) > 0.998
    assert share_near(models[name], real, num_sigmas=1.0) < 0.75
    np.testing.assert_array_equal(models[name].arrays["centres"], flow_page.centres(name).ravel())


def test_the_models_of_the_page_are_what_the_builder_writes(models, tmp_path):
    flow_page.write(models, tmp_path / "models.js")
    assert (tmp_path / "models.js").read_text() == flow_page.MODELS.read_text()
    for name, model in models.items():
        network, variables = flow_page.unflatten(model)
        np.testing.assert_array_equal(flow_page.flatten(variables), model.weights)
        wanted = importlib.import_module(f"configs.{name}").get_config()
        assert model.config == f"configs/{name}.py"
        if name == "digits":
            wanted.network.hidden_sizes = flow_page.DIGITS_HIDDEN_SIZES
            wanted.flow.num_steps, wanted.flow.num_refine_steps = flow_page.DIGITS_FLOW_STEPS
        assert network.hidden_sizes == tuple(wanted.network.hidden_sizes)
        assert model.flow == {
            "stepSize": wanted.flow.step_size,
            "noiseScale": wanted.flow.noise_scale,
            "length": wanted.flow.num_steps + wanted.flow.num_refine_steps,
        }


def test_samples_of_digits_of_the_page_are_nearer_to_digits_than_the_prior(models):
    samples, start = flow_page.score(models["digits"])
    assert samples < 0.4 < 1.0 < start


@pytest.mark.slow
def test_a_network_of_digits_is_trained():
    before, after = (flow_page.of_digits(num_steps=count) for count in (10, 20))
    assert after.sizes == (64, *flow_page.DIGITS_HIDDEN_SIZES, 1)
    assert after.arrays["factor"].shape == (64, 64)
    moved = np.abs(after.weights - before.weights)
    assert moved.shape == flow_page.read()["digits"].weights.shape
    assert 1e-5 < moved.max() < 0.1


def test_the_page_loads_without_a_network_and_has_every_file_that_it_needs():
    texts = {path.name: path.read_text() for path in flow_page.FOLDER.iterdir()}
    # The namespace of SVG is a name; nothing is loaded from it.
    loaded = "\n".join(texts.values()).replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?:|\bfetch\(|\bimport\(|@import|url\(|src=\"//", loaded)
    scripts = re.findall(r'<script src="([^"]+)"', texts["index.html"])
    assert {*scripts, "index.html"} == {*texts}
    assert sum(map(len, texts.values())) < 400_000


def test_a_built_site_gets_the_page(tmp_path):
    app = SimpleNamespace(outdir=tmp_path)
    flow_page.copy(app, None)
    copied = {path.name for path in (tmp_path / "flow").iterdir()}
    assert copied == {path.name for path in flow_page.FOLDER.iterdir()}
    conf = (flow_page.FOLDER.parent / "conf.py").read_text()
    assert 'app.connect("build-finished", flow_page.copy)' in conf


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, in which the page is opened")
@pytest.mark.parametrize("name", flow_page.TARGETS)
def test_points_in_a_browser_end_at_the_data(name, tmp_path):
    ran = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={tmp_path}",
            "--force-prefers-reduced-motion",  # Shows only where the points end.
            "--window-size=1280,1600",
            "--virtual-time-budget=10000",
            "--dump-dom",
            f"{(flow_page.FOLDER / 'index.html').as_uri()}#{name}",
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    plane = ran.stdout[ran.stdout.index('id="plane"') : ran.stdout.index('id="digits"')]
    found = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", plane))
    assert found["step"] == "120"
    assert float(found["within 4 σ of the data"].removesuffix(" %")) > 97

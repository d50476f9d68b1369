"""The page in which points flow: its script computes what the library does, and it is complete."""

import base64
import json
import re
import shutil
import subprocess

import jax
import numpy as np
import pytest

import fdrl_jax as fdrl
from docs import flow_page

NODE = shutil.which("node")
FOLDER = flow_page.MODELS.parent
# Evaluates and flows the points of each model, as the page does.
SCRIPT = """
const flow = require("./flow.js"), models = require("./models.js");
const found = {};
for (const [name, { starts }] of Object.entries(JSON.parse(require("fs").readFileSync(0)))) {
  const { sizes, weights, flow: settings } = models[name];
  const layers = flow.network(sizes, flow.floats(weights));
  const gradients = starts.map((x) => new Float64Array(x.length));
  const values = starts.map((x, i) => flow.logRatio(layers, x, gradients[i]));
  const swarm = new flow.Swarm(layers, flow.normals(flow.uniforms(0)));
  starts.forEach((x) => swarm.add(x));
  while (!swarm.step({ ...settings, noiseScale: 0 }));
  const ends = swarm.points.map(({ x }) => [...x]);
  found[name] = { values, gradients: gradients.map((g) => [...g]), ends };
}
process.stdout.write(JSON.stringify(found));
"""


def floats(text):
    return np.frombuffer(base64.b64decode(text), "<f4")


@pytest.fixture(scope="module")
def models():
    text = flow_page.MODELS.read_text()
    return json.loads(text[text.index("{") : text.rindex(";\nif")])


def starts_of(name):
    return np.asarray(flow_page.RECIPES[name]().start(jax.random.key(1), 200))


def ends_of(models):
    asked = {name: {"starts": starts_of(name).tolist()} for name in models}
    options = {"input": json.dumps(asked), "capture_output": True, "text": True, "check": True}
    return json.loads(subprocess.run([NODE, "-e", SCRIPT], cwd=FOLDER, **options).stdout)


def log_ratio_of(model, dtype):
    """The function of a model of the page in the library."""
    params, first, weights = {}, 0, floats(model["weights"]).astype(dtype)
    for index, (size, outputs) in enumerate(zip(model["sizes"], model["sizes"][1:], strict=False)):
        last = first + size * outputs
        kernel, bias = weights[first:last].reshape(size, outputs), weights[last : last + outputs]
        params[f"mlp_{2 * index}"], first = {"kernel": kernel, "bias": bias}, last + outputs
    assert first == len(weights)
    net = fdrl.networks.MLP(tuple(model["sizes"][1:-1]), dtype=dtype)
    return jax.tree_util.Partial(net.apply, {"params": params})


@pytest.mark.slow
@pytest.mark.skipif(NODE is None, reason="needs Node.js, which runs the page's script")
def test_log_ratio_gradient_and_flow_of_the_page_are_those_of_the_library(models):
    found = ends_of(models)
    for name, model in models.items():
        log_ratio, x0, of_page = log_ratio_of(model, "float32"), starts_of(name), found[name]
        np.testing.assert_allclose(of_page["values"], log_ratio(x0), atol=1e-4)
        drift = fdrl.drift(x0, log_ratio)
        np.testing.assert_allclose(of_page["gradients"], -drift, atol=1e-4)
        assert np.abs(drift).max() > 0.01
        with jax.enable_x64(True):  # As in JavaScript: rounding decides on which side of a kink.
            ends = fdrl.flow(
                jax.random.key(0),
                np.asarray(x0, np.float64),
                fdrl.first_variation(log_ratio_of(model, "float64"), "kl", output="log_ratio"),
                num_steps=model["flow"]["length"],
                step_size=model["flow"]["stepSize"],
                noise_scale=0.0,
            )
        np.testing.assert_allclose(of_page["ends"], ends, atol=1e-9)
        assert np.abs(np.asarray(ends) - x0).mean() > 0.1


def test_the_page_loads_without_a_network_and_has_every_file_that_it_needs():
    texts = {path.name: path.read_text() for path in FOLDER.iterdir()}
    # The namespace of SVG is a name; nothing is loaded from it.
    loaded = "\n".join(texts.values()).replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?:|\bfetch\(|\bimport\(|@import|url\(|src=\"//", loaded)
    scripts = re.findall(r'<script src="([^"]+)"', texts["index.html"])
    assert {*scripts, "index.html"} == {*texts}
    assert sum(map(len, texts.values())) < 400_000

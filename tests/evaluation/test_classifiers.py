"""Parts of a classifier: features, and shifts of its training images."""

import jax
import numpy as np

from fdrl_jax import networks
from fdrl_jax.training.augmentation import shifted


def test_features_are_the_input_of_the_last_affine_map():
    spec = networks.ResNetSpec(4, ((6, 2),))
    network = networks.resnet(spec, num_outputs=3)
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
    variables = network.init(jax.random.key(1), x)
    features = network.apply(variables, x, features=True)
    head = variables["params"]["linear"]
    assert features.shape == (2, 6)
    expected = features @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(network.apply(variables, x), expected, rtol=1e-5)


def test_shifts_are_at_most_the_given_length_and_depend_only_on_positions():
    images = np.zeros((40, 9, 9, 1), np.float32)
    images[:, 4, 4] = 1.0
    key, positions = jax.random.key(0), np.arange(40)
    moved = np.asarray(shifted(key, positions, images, 2))
    places = np.argwhere(moved[..., 0] == 1.0)[:, 1:]
    assert len(places) == 40, "a point in the middle stays in the image"
    assert set((places - 4).ravel()) == {-2, -1, 0, 1, 2}
    np.testing.assert_array_equal(shifted(key, positions[7:], images[7:], 2), moved[7:])

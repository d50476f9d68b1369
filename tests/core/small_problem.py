"""A problem that compiles quickly, for the tests of training step, sampler and devices."""

import jax
import jax.numpy as jnp
import optax

from fdrl_jax import FDRL, priors
from fdrl_jax.training import rng, state, steps
from fdrl_jax.training.problem import Constants, Estimator, Problem

OPTIMIZER = optax.adam(0.05)
KEY = rng.root_key(3)
PRIOR = priors.mixture(
    {
        "weights": jnp.ones(1),
        "mean": jnp.array([[0.2, -0.1]]),
        "factor": 0.5 * jnp.eye(2),
    },
    (2,),
)
CONSTANTS = Constants(data=jnp.array([0.1, 0.4]), prior=PRIOR.params)


def apply(variables, x):
    """A quadratic log-ratio, [B, 2] -> [B]."""
    params = variables["params"]
    return x @ params["slope"] + params["curvature"] * jnp.sum(x**2, -1) + params["offset"]


ESTIMATOR = Estimator(apply)


def initial_variables():
    return {
        "params": {
            "slope": jnp.array([0.3, -0.2]),
            "curvature": jnp.float32(0.5),
            "offset": jnp.float32(0.1),
        }
    }


def initial_state(optimizer=OPTIMIZER, variables=None):
    return state.create(variables or initial_variables(), optimizer)


def draw(data, host_batch, key, positions):
    """Gaussian data around the data arrays, which depend only on the examples' positions."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, positions)
    noise = jax.vmap(lambda key: jax.random.normal(key, (2,)))(keys)
    return {"real": data + 0.3 * noise}


def problem(estimator=ESTIMATOR, prior_sample=PRIOR.sample, **options):
    defaults = {"num_steps": 4, "step_size": 0.1, "noise_scale": 0.2, "num_refine_steps": 2}
    return Problem(FDRL(**(defaults | options)), estimator, prior_sample)


def train_step(of_problem=None, **options):
    options = {"optimizer": OPTIMIZER, "draw": draw, "batch_size": 16} | options
    return steps.make_train_step(of_problem or problem(), **options)

"""The two files of the authors' PyTorch program: a training checkpoint and the Gaussian prior."""

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from experiments.torch_files.archives import MULTIVARIATE_NORMAL, Array, read_torch_file
from experiments.torch_files.errors import TorchFileError, shown
from experiments.torch_files.inert import Instance

_KEYS = ("step", "model", "ema", "optim", "scheduler", "config")
_PARALLEL_PREFIX = "module."  # Added by DataParallel, that is when trained on several GPUs.
_BUFFER_SUFFIXES = ("weight_u", "weight_v")  # The vectors of spectral normalisation; not optimized.


class TorchCheckpoint(NamedTuple):
    """A training checkpoint in the authors' format.

    Attributes:
        step: Index, from 0, of the last training step done; so one less than their number.
        model: State dictionary: parameters and buffers by name, without the prefix ``module.``.
        ema: The same for the exponential moving average.
        optimizer: State dictionary of ``torch.optim.Adam``; see ``adam_moments``.
        scheduler: State dictionary of the learning-rate schedule.
        config: The hyper-parameters by the authors' names.
    """

    step: int
    model: dict[str, Array]
    ema: dict[str, Array]
    optimizer: dict[str, Any]
    scheduler: dict[str, Any]
    config: dict[str, Any]


class AdamMoments(NamedTuple):
    """The state of Adam by parameter names.

    Attributes:
        num_updates: Number of updates done.
        mu: Running mean of the gradient.
        nu: Running mean of the squared gradient.
    """

    num_updates: int
    mu: dict[str, Array]
    nu: dict[str, Array]


class GaussianPrior(NamedTuple):
    """The data-dependent prior N(mean, covariance) over flattened samples (eq. 8).

    Attributes:
        mean: [D], flattened in the authors' order: channels, rows, columns.
        covariance: [D, D].
        scale_tril: [D, D], the lower Cholesky factor of the covariance.
    """

    mean: Array
    covariance: Array
    scale_tril: Array


def read_checkpoint(path: str | os.PathLike[str]) -> TorchCheckpoint:
    """Reads a training checkpoint of the authors' PyTorch program.

    Args:
        path: The ``.pt`` file.

    Returns:
        Its entries, checked for presence and kind.

    Raises:
        TorchFileError: As ``read_torch_file``, or an entry is missing or of the wrong kind.
    """
    entries = read_torch_file(path)
    try:
        if not isinstance(entries, dict):
            raise TorchFileError(f"holds {_kind(entries)} instead of a checkpoint")
        missing = [key for key in _KEYS if key not in entries]
        if missing:
            raise TorchFileError(f"is no checkpoint: it lacks {', '.join(missing)}")
        return TorchCheckpoint(
            step=_count(entries["step"], "step"),
            model=_state_dict(entries["model"], "model"),
            ema=_state_dict(entries["ema"], "ema"),
            optimizer=_text_keyed(entries["optim"], "optim"),
            scheduler=_text_keyed(entries["scheduler"], "scheduler"),
            config=_text_keyed(entries["config"], "config"),
        )
    except TorchFileError as error:
        raise TorchFileError(f"{os.fspath(path)}: {error}") from error


def adam_moments(checkpoint: TorchCheckpoint) -> AdamMoments:
    """Returns the moments of Adam by parameter names.

    PyTorch numbers the parameters in the order of the state dictionary, buffers left out.

    Args:
        checkpoint: As read.

    Returns:
        The moments of every parameter; zeros for those never updated.

    Raises:
        TorchFileError: The optimizer's state is not one of Adam over the model's parameters.
    """
    parameters = {
        name: array
        for name, array in checkpoint.model.items()
        if not name.endswith(_BUFFER_SUFFIXES)
    }
    states = checkpoint.optimizer.get("state")
    if not isinstance(states, dict) or not set(states) <= set(range(len(parameters))):
        raise TorchFileError(f"the optimizer's state is not one of {len(parameters)} parameters")
    counts: set[int] = set()
    mu: dict[str, Array] = {}
    nu: dict[str, Array] = {}
    for index, (name, parameter) in enumerate(parameters.items()):
        match states.get(index):
            case None:
                mean = square = np.zeros_like(parameter)
            case {
                "step": step,
                "exp_avg": np.ndarray() as mean,
                "exp_avg_sq": np.ndarray() as square,
            }:
                counts.add(_count(step, "step of the optimizer"))
            case _:
                raise TorchFileError(f"the optimizer's state of {shown(name)} is not one of Adam")
        if not mean.shape == square.shape == parameter.shape:
            raise TorchFileError(
                f"the optimizer's state of {shown(name)} has the shapes {mean.shape} and "
                f"{square.shape} instead of {parameter.shape}"
            )
        mu[name], nu[name] = mean, square
    if len(counts) > 1:
        raise TorchFileError(f"the optimizer's step counts differ: {sorted(counts)}")
    return AdamMoments(max(counts, default=0), mu, nu)


def read_gaussian_prior(path: str | os.PathLike[str]) -> GaussianPrior:
    """Reads the authors' data-dependent prior, a pickled ``MultivariateNormal``.

    Args:
        path: The ``.pt`` file.

    Returns:
        Mean, covariance and its Cholesky factor, in the dtype of the file.

    Raises:
        TorchFileError: As ``read_torch_file``, or the distribution is incomplete or inconsistent.
    """
    prior = read_torch_file(path)
    try:
        if not isinstance(prior, Instance) or prior.name != MULTIVARIATE_NORMAL:
            raise TorchFileError(f"holds {_kind(prior)} instead of a MultivariateNormal")
        mean = _floats(prior.state, "loc", ndim=1)
        scale_tril = _floats(prior.state, "_unbroadcasted_scale_tril", ndim=2)
        if scale_tril.shape != 2 * mean.shape:
            raise TorchFileError(
                f"its Cholesky factor has the shape {scale_tril.shape} for a mean of {mean.shape}"
            )
        if np.triu(scale_tril, 1).any() or not (np.diagonal(scale_tril) > 0).all():
            raise TorchFileError("its Cholesky factor is not lower triangular and positive")
        if "covariance_matrix" in prior.state:
            covariance = _floats(prior.state, "covariance_matrix", ndim=2)
        else:
            covariance = scale_tril @ scale_tril.T
        _check_variances(covariance, scale_tril)
        return GaussianPrior(mean, covariance, scale_tril)
    except TorchFileError as error:
        raise TorchFileError(f"{os.fspath(path)}: {error}") from error


def _check_variances(covariance: Array, scale_tril: Array) -> None:
    # The diagonal stands for the whole: the full product takes D^3 operations.
    variances = np.einsum("ij,ij->i", scale_tril, scale_tril, dtype=np.float64)
    if covariance.shape != scale_tril.shape or not np.allclose(
        np.diagonal(covariance), variances, rtol=1e-3, atol=0
    ):
        raise TorchFileError("its covariance does not belong to its Cholesky factor")


def _floats(state: Mapping[object, object], name: str, ndim: int) -> Array:
    array = state.get(name)
    if not isinstance(array, np.ndarray) or array.dtype not in (np.float32, np.float64):
        raise TorchFileError(f"its distribution lacks the tensor {name} of float32 or float64")
    if array.ndim != ndim or not np.isfinite(array).all():
        raise TorchFileError(f"its tensor {name} is not finite with {ndim} dimensions")
    return array


def _kind(value: object) -> str:
    return value.name if isinstance(value, Instance) else f"a value of type {type(value).__name__}"


def _count(value: object, name: str) -> int:
    if isinstance(value, np.ndarray) and value.shape == ():
        value = value.item()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and value >= 0:
        return value
    raise TorchFileError(f"its entry {name} is not a count")


def _text_keyed(value: object, name: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise TorchFileError(f"its entry {name} is not a dictionary with keys of text")
    return value


def _state_dict(value: object, name: str) -> dict[str, Array]:
    tensors = _text_keyed(value, name)
    for key, array in tensors.items():
        if not isinstance(array, np.ndarray):
            raise TorchFileError(f"its entry {name} holds {shown(key)}, which is no tensor")
    prefixed = [key.startswith(_PARALLEL_PREFIX) for key in tensors]
    if any(prefixed) and not all(prefixed):
        raise TorchFileError(f"its entry {name} has {_PARALLEL_PREFIX} before some names only")
    return {key.removeprefix(_PARALLEL_PREFIX): array for key, array in tensors.items()}

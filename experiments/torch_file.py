"""Reads PyTorch's `.pt` files by `torch.load(weights_only=True)`, which executes nothing in them.

Only this module imports PyTorch, and only when a file is read. PyTorch is the extra `torch`.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np

from experiments.errors import UserError

_SAFE_SINCE = (2, 6)  # With older versions, a file could execute code despite `weights_only`.
_INSTALL = "pip install -e '.[torch]'"
_MAX_SHOWN_CHARACTERS = 200
_PARALLEL_PREFIX = "module."  # Added by DataParallel, for training on several GPUs.


class TorchFileError(UserError):
    """A PyTorch file that is damaged, rejected or of the wrong kind. The message names the file."""


def load(path: Path) -> Any:
    """Reads a file of `torch.save`, of any version of PyTorch's format.

    Returns:
      The saved object: plain containers of tensors on the CPU. The only class allowed is
      `torch.distributions.MultivariateNormal`, the authors' data-dependent prior. Its constructor
      does not run, so its attributes are not validated.

    Raises:
      TorchFileError: if the file is missing, damaged, or contains anything else.
      UserError: if PyTorch 2.6 or newer is not installed.
    """
    try:
        import torch
    except ModuleNotFoundError:
        raise UserError(f"{path}: reading it needs PyTorch. Install it with: {_INSTALL}") from None
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < _SAFE_SINCE:
        raise UserError(
            f"{path}: reading it safely needs PyTorch 2.6 or newer, but {torch.__version__} is "
            f"installed. Upgrade it with: {_INSTALL}"
        )
    try:
        with torch.serialization.safe_globals([torch.distributions.MultivariateNormal]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise TorchFileError(f"{path} does not exist") from None
    except OSError as error:
        raise TorchFileError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # A damaged file can make the unpickler raise any exception.
        raise TorchFileError(f"{path}: {_reason(error)}") from error


def quoted(text: object) -> str:
    """Quotes text from a file on one line, without control characters and of bounded length."""
    shown = str(text)
    if len(shown) > _MAX_SHOWN_CHARACTERS:
        shown = shown[:_MAX_SHOWN_CHARACTERS] + "..."
    return ascii(shown)


def array(value: object, name: str) -> np.ndarray:
    """Returns a tensor as an array, bfloat16 as float32.

    The message of an error has its name.

    Raises:
      ValueError: if it is not a dense tensor of floats or int64, or claims more numbers than it
        stores.
    """
    import torch

    known = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64)
    if (
        not isinstance(value, torch.Tensor)
        or value.layout is not torch.strided
        or value.device.type != "cpu"
        or value.dtype not in known
        # With a stride of 0, a tensor of any size needs only one number.
        or value.numel() * value.element_size() > value.untyped_storage().nbytes()
    ):
        raise ValueError(f"its {name} is not a plain tensor")
    values = value.detach()
    return np.asarray((values.float() if values.dtype == torch.bfloat16 else values).numpy())


def state_dict(value: object, name: str) -> dict[str, np.ndarray]:
    """Returns the tensors of a state dictionary, without the prefix `module.` of their names.

    The message of an error has the name of the entry.

    Raises:
      ValueError: if it is not a dictionary of tensors by name.
    """
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ValueError(f"its entry {name} is not a dictionary of tensors by name")
    prefixed = [key.startswith(_PARALLEL_PREFIX) for key in value]
    if any(prefixed) and not all(prefixed):
        raise ValueError(f"its entry {name} has {_PARALLEL_PREFIX!r} before only some of its names")
    return {
        key.removeprefix(_PARALLEL_PREFIX): array(tensor, f"entry {name} at {quoted(key)}")
        for key, tensor in value.items()
    }


def _reason(error: Exception) -> str:
    """Shortens PyTorch's message, which recommends loading the file without `weights_only`."""
    refused = re.search(r"\bGLOBAL (\S+)", str(error))
    if refused:
        name = quoted(refused[1])
        return f"it contains {name}, but only tensors and plain containers are allowed"
    return f"it is damaged or not a PyTorch file ({type(error).__name__})"

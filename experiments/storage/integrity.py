"""Hashes that tell whether what is read back is what was written."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np


def digest_arrays(tree: Any) -> str:
    """Returns the SHA-256 of a pytree of numpy arrays: paths, dtypes, shapes and bytes.

    Leaves are hashed by several threads, as the hashing of long buffers leaves Python's lock.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    with ThreadPoolExecutor() as pool:
        hashes = list(pool.map(lambda leaf: _digest_array(leaf[1]), leaves))
    names = [jax.tree_util.keystr(path) for path, _ in leaves]
    return digest_json(list(zip(names, hashes, strict=True)))


def digest_json(content: Any) -> str:
    """Returns the SHA-256 of content that JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _digest_array(array: np.ndarray) -> str:
    hashed = hashlib.sha256(f"{array.dtype} {array.shape}".encode())
    hashed.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return hashed.hexdigest()

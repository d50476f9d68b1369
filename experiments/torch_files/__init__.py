"""Reads PyTorch ``.pt`` files without PyTorch and without running what they hold.

A ``.pt`` file is a zip archive: a pickle that describes the saved object, and one raw entry for
each tensor storage. The floors, each knowing only those above it in this list:

* ``errors`` and ``inert``: the one error, the inert values, and the check of a finished object;
* ``pickles``: an interpreter of the pickle that can only build inert data;
* ``archives``: the zip archive, its storages and the tensors that view them as numpy arrays;
* ``checkpoints``: the two files of the authors' PyTorch program, checked and named;
* ``convert``: from those to a workdir of ours. It alone knows the rest of the program.
"""

from experiments.torch_files.archives import read_torch_file
from experiments.torch_files.checkpoints import (
    AdamMoments,
    GaussianPrior,
    TorchCheckpoint,
    adam_moments,
    read_checkpoint,
    read_gaussian_prior,
)
from experiments.torch_files.errors import TorchFileError
from experiments.torch_files.inert import Instance

__all__ = [
    "AdamMoments",
    "GaussianPrior",
    "Instance",
    "TorchCheckpoint",
    "TorchFileError",
    "adam_moments",
    "read_checkpoint",
    "read_gaussian_prior",
    "read_torch_file",
]

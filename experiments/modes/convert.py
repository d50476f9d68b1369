"""Mode convert: a checkpoint of the authors' PyTorch program becomes a workdir."""

from pathlib import Path

from experiments.request import Request
from experiments.storage.workdir import Workdir
from experiments.torch_files.convert import convert


def run(request: Request) -> None:
    """Converts the file, and tells which of its settings have no counterpart."""
    file, workdir = Path(request.checkpoint or ""), Workdir(request.workdir)
    unknown = convert(request.config, file, workdir, request.command, request.prior)
    if unknown:
        print(f"no counterpart here, left out: {', '.join(unknown)}")
    print(f"converted: --workdir={workdir.root} samples, evaluates and trains on")

"""Mode sample: samples of a checkpoint, as a file and as a picture."""

import numpy as np

from experiments import pictures, runs
from experiments.request import Request
from experiments.sampling import sample_state


def run(request: Request) -> None:
    """Writes samples as an .npz (points; images as uint8 NHWC) and a picture."""
    experiment, workdir = runs.open_run(request)
    train_state = runs.restore(experiment, workdir, request.checkpoint_step)
    num = request.num_samples or experiment.evaluation_samples
    samples = sample_state(experiment, train_state, num)
    path = workdir.samples / f"step_{int(train_state.step)}.npz"
    np.savez_compressed(path, arr_0=pictures.as_stored(experiment.source, samples.refined))
    figure = pictures.samples_and_data(experiment.source, samples)
    picture = pictures.save(figure, path.with_suffix(".png"))
    print(f"{num:,} samples of step {int(train_state.step):,}: {path}\npicture: {picture}")

"""The divergences of low-rank priors, against closed forms."""

from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import low_rank
from experiments.prior import FittedPrior

# A Markov chain, like a row of pixels.
COVARIANCE = 0.9 ** np.abs(np.subtract.outer(np.arange(24.0), np.arange(24)))
FACTOR = np.linalg.cholesky(COVARIANCE)


def test_without_directions_white_noise_has_the_closed_form():
    ((rank, white, _),) = low_rank.divergences(FACTOR, (24,), [0])
    assert rank == 0
    assert white == pytest.approx(-0.5 * np.linalg.slogdet(COVARIANCE)[1], rel=1e-9)


@pytest.mark.parametrize("shape", [(24,), (4, 3, 2)])
def test_more_directions_lose_less_and_frequencies_less_than_white_noise(shape):
    ranks, white, per_frequency = zip(*low_rank.divergences(FACTOR, shape, [0, 6, 23]), strict=True)
    assert ranks == (0, 6, 23)
    assert white[0] > white[1] > white[2] == pytest.approx(0.0, abs=1e-9)
    assert all(a < b for a, b in zip(per_frequency[:2], white[:2], strict=True))


def test_the_command_reads_a_run_and_refuses_ranks_of_all_dimensions(tmp_path, monkeypatch, capsys):
    fitted = FittedPrior(np.zeros(24), FACTOR, 0.0, 1.0, 100)
    opened = SimpleNamespace(data={"event_shape": [24]}, prior=lambda: fitted)
    monkeypatch.setattr(low_rank.run, "open_run", lambda path: opened)
    arguments = ["low_rank", str(tmp_path), "--ranks", "2"]
    monkeypatch.setattr("sys.argv", arguments)
    low_rank.main()
    assert capsys.readouterr().out.splitlines()[1].split()[0] == "2"
    monkeypatch.setattr("sys.argv", [*arguments, "24"])
    with pytest.raises(SystemExit):
        low_rank.main()
    assert "must be from 0 to 23, got 24" in capsys.readouterr().err

"""Which evaluation is the run's own."""

from types import SimpleNamespace

import pytest

from experiments import records, settings
from experiments.files import write_json


@pytest.mark.parametrize(
    ("of_run", "of_evaluation", "is_own"),
    [("", None, True), ("runs/c", None, True), ("runs/c", "c", True), ("", "c", False)],
)
def test_the_own_evaluation_of_a_run_has_no_other_classifier(
    of_run, of_evaluation, is_own, tmp_path
):
    wanted = settings.checked(settings.defaults()) | {"condition.classifier": of_run}
    run = SimpleNamespace(settings=wanted, evaluations=tmp_path)
    key = {"step": 4, "num_samples": wanted["evaluate.num_samples"]}
    key["settings"] = settings.of_scope(wanted, "flow")
    details = {} if of_evaluation is None else {"classifier": {"name": of_evaluation}}
    (tmp_path / "step_4").mkdir()
    write_json(tmp_path / "step_4" / "record.json", {"key": key, "details": details})
    assert records.of_run(run) == (tmp_path / "step_4" if is_own else None)

"""The report: a picture first, nothing from outside of its record, nothing that runs."""

import json
import re
import shlex

import pytest
from small_runs import start

from experiments import report, settings


def record_of(run):
    folder = run.evaluations / "step_4"
    return json.loads((folder / "record.json").read_text()), folder


def test_a_picture_comes_first_then_one_sentence_then_one_table(trained):
    page = trained.report.read_text()
    places = [page.index(mark) for mark in ("<h1>", "<img", 'class="lead"', "<table")]
    assert places == sorted(places)
    found, _ = record_of(trained)
    for name in found["metrics"]:
        assert page.count(f"<small>{name},") == 1, "no metric twice"
    assert "http" not in re.sub(r"data:image/\w+;base64,[^\"]*", "", page)


def test_the_flow_plays_in_the_report(trained):
    page = trained.report.read_text()
    assert page.count('src="data:image/webp;base64,') == 1
    assert '<img alt="Samples that flow from the prior, animated."' in page


def test_the_report_names_the_command_without_paths_and_the_settings_that_differ(trained):
    page = trained.report.read_text()
    assert str(trained.root.parent) not in page
    for key in settings.changed(trained.settings):
        assert f"<td>{key}</td>" in page


def test_the_command_of_the_report_can_be_pasted():
    hostile = ["main", "--workdir=/home/me/it's \"><script>$(x)\n", "--config=/a/b c.py", "d e"]
    shown = report._without_paths(shlex.join(hostile))
    names = ["main", "--workdir=it's \"><script>$(x)\n", "--config=b c.py", "d e"]
    assert shlex.split(shown) == names


def test_an_evaluation_of_other_settings_does_not_replace_the_report_of_the_run(trained, capsys):
    before = trained.report.read_bytes()
    start("evaluate", trained.root, None, {"flow.num_steps": 5})
    (other,) = trained.evaluations.glob("step_4_*")
    assert f"{other}/report.html" in capsys.readouterr().out
    assert "flow.num_steps=5 (run: 3)" in (other / "report.html").read_text()
    assert trained.report.read_bytes() == before


@pytest.mark.parametrize("name", ["../../secret.png", "/etc/hostname.png", 'a.png" onload="x'])
def test_a_record_cannot_put_another_file_or_a_script_into_the_page(name, trained):
    found, folder = record_of(trained)
    hostile = {**found, "pictures": {**found["pictures"], name: "caption"}}
    with pytest.raises(ValueError, match="not a picture of its own"):
        report.write(trained, hostile, folder)


def test_text_of_a_user_is_escaped(trained):
    found, folder = record_of(trained)
    script = "<script>alert(1)</script>"
    hostile = {**found, "details": {**found["details"], script: script}}
    hostile["pictures"] = dict.fromkeys(found["pictures"], f'"{script}')
    page = report.write(trained, hostile, folder).read_text()
    assert script not in page
    assert "&lt;script&gt;" in page

"""The report: a picture first, nothing from outside of its record, nothing that runs."""

import io
import json
import re
from base64 import b64decode

import numpy as np
import pytest
from PIL import Image
from small_runs import start

from experiments import report, settings


def record_of(run):
    """The record of the training, which is the first one, and its folder."""
    files = run.evaluations.glob("step_4-*/record.json")
    file = min(files, key=lambda path: path.stat().st_mtime_ns)
    return json.loads(file.read_text()), file.parent


@pytest.fixture(scope="module")
def page(trained):
    record, folder = record_of(trained)
    return report.write(trained, record, folder).read_text()


def test_a_picture_comes_first_then_one_sentence_then_one_table(trained, page):
    places = [page.index(mark) for mark in ("<h1>", "<img", 'class="lead"', "<table")]
    assert places == sorted(places)
    for name in record_of(trained)[0]["metrics"]:
        assert page.count(f"<small>{name},") == 1, "no metric twice"
    assert "http" not in re.sub(r"data:image/\w+;base64,[^\"]*", "", page)


def test_the_flow_plays_in_the_report_and_can_be_paused(trained, page):
    (movie,) = re.findall(r'<label class="movie">.*?</label>', page)
    assert '<input type="checkbox"> pause' in movie
    frames, width, height = map(
        int, re.search(r"--frames:(\d+);width:\d+px;aspect-ratio:(\d+)/(\d+)", movie).groups()
    )
    sheet = Image.open(io.BytesIO(b64decode(re.search('base64,([^"]*)', movie)[1])))
    assert sheet.size == (width, frames * height)
    first, last = np.asarray(sheet)[:height], np.asarray(sheet)[-height:]
    assert np.abs(first.astype(int) - last).max() > 50, "points have moved"


def test_the_report_names_the_command_and_the_settings_that_differ_without_folders(trained, page):
    assert str(trained.root.parent) not in page
    for key in settings.changed(trained.settings):
        assert f"<td>{key}</td>" in page


def test_an_evaluation_of_other_settings_does_not_replace_the_report_of_the_run(trained, capsys):
    before, (_, own) = trained.report.read_bytes(), record_of(trained)
    start("evaluate", trained.root, None, {"flow.num_steps": 5})
    (other,) = set(trained.evaluations.glob("step_4-*")) - {own}
    assert f"{other}/report.html" in capsys.readouterr().out
    assert "flow.num_steps=5 (run: 3)" in (other / "report.html").read_text()
    assert trained.report.read_bytes() == before


def test_text_of_a_user_is_escaped_and_a_record_without_metrics_has_no_table(of_digits):
    found, folder = record_of(of_digits)
    script = "<script>alert(1)</script>"
    details = {**found["details"], script: script, "skipped": [script]}
    pictures = dict.fromkeys(found["pictures"], f'"{script}')
    hostile = {**found, "details": details, "pictures": pictures, "metrics": {}}
    page = report.write(of_digits, hostile, folder).read_text()
    assert script not in page
    assert '<p class="lead">No verdict: &lt;script&gt;' in page
    assert 'class="metrics"' not in page.partition("<h2>")[0].partition("</style>")[2]

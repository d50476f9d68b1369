"""The free memory of the host, of which a container may have only a part."""

import pytest

from experiments.machine import memory

STAT = "anon 500\ninactive_file 200\nactive_file 100\nworkingset_activate_file 7\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"max": "1000\n"}, 1000),
        ({"max": "1000\n", "current": "850\n"}, 150),
        # The system drops cached files when it needs their memory.
        ({"max": "1000\n", "current": "850\n", "stat": STAT}, 450),
    ],
)
def test_what_a_container_uses_is_not_free(files, expected, tmp_path, monkeypatch):
    for name, text in files.items():
        (tmp_path / f"memory.{name}").write_text(text)
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert memory.host_bytes() == expected


@pytest.mark.parametrize("files", [{}, {"max": "max\n", "current": "850\n"}])
def test_without_a_limit_all_memory_of_the_host_counts(files, tmp_path, monkeypatch):
    for name, text in files.items():
        (tmp_path / f"memory.{name}").write_text(text)
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert memory.host_bytes() > 2**24

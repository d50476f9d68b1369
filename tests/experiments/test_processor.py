"""The processor's features are read if the system lists them."""

from experiments.machine import processor


def test_features_of_either_architecture_are_read(tmp_path):
    for name in ("flags", "Features"):
        path = tmp_path / name
        path.write_text(f"processor\t: 0\n{name}\t\t: avx2 amx_bf16\n\nprocessor\t: 1\n")
        assert processor.features(path) == {"avx2", "amx_bf16"}


def test_the_vendor_is_read_where_it_is_listed(tmp_path):
    path = tmp_path / "cpuinfo"
    path.write_text("processor\t: 0\nvendor_id\t: AuthenticAMD\n\nprocessor\t: 1\n")
    assert processor.vendor(path) == "AuthenticAMD"
    assert processor.features(path) == frozenset()


def test_a_system_without_the_list_has_no_known_features(tmp_path):
    assert processor.features(tmp_path / "missing") == frozenset()
    assert processor.vendor(tmp_path / "missing") == ""


def test_only_notable_features_are_described(monkeypatch):
    monkeypatch.setattr(processor, "features", lambda: frozenset(("fpu", "amx_bf16")))
    assert processor.describe() == "amx_bf16"
    monkeypatch.setattr(processor, "features", frozenset)
    assert processor.describe() == "features unknown"

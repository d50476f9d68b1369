"""PyTorch files are read without executing them; damaged and hostile files are errors."""

import os
import pickle
import sys
import warnings
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.errors import UserError
from experiments.torch_file import TorchFileError, load

torch = pytest.importorskip("torch")

GOLDEN = Path(__file__).parents[1] / "golden"
PRIOR = GOLDEN / "original_tiny_ddp.pt"


class Calls:
    """An object that is pickled as the call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def archive(path, pickled):
    """Writes a file of PyTorch's zip format with this pickle and no tensors."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/byteorder", b"little")
        file.writestr("archive/version", b"3\n")
    return path


def legacy(path, pickled):
    """Writes a file of the format before PyTorch 1.6."""
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    head = b"".join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, system))
    path.write_bytes(head + pickled + pickle.dumps([], 2))
    return path


def refusal(path):
    """The message of the error for a file, after a check of its form."""
    with pytest.raises(TorchFileError) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert message.isprintable()
    assert len(message) < len(str(path)) + 400
    assert "weights_only" not in message, "no advice to execute the file"
    return message


def short(text):
    return text.encode() + b"\n"


EXPLOITS = {
    **{
        f"os.system, protocol {protocol}": (
            lambda marker, protocol=protocol: pickle.dumps(
                Calls(os.system, f"touch '{marker}'"), protocol
            )
        )
        for protocol in range(6)
    },
    "eval": lambda marker: pickle.dumps(Calls(eval, f"open({str(marker)!r}, 'w').close()"), 2),
    "inside a checkpoint": lambda marker: pickle.dumps(
        {"step": 1, "model": Calls(os.system, f"touch '{marker}'")}, 2
    ),
    "INST": lambda marker: b"(V" + short(f"touch '{marker}'") + b"ios\nsystem\n.",
    "OBJ": lambda marker: b"(cos\nsystem\nV" + short(f"touch '{marker}'") + b"o.",
    "dropped result": (lambda marker: b"cos\nsystem\nV" + short(f"touch '{marker}'") + b"\x85R0}."),
}


@pytest.mark.parametrize("write", [archive, legacy])
@pytest.mark.parametrize("exploit", EXPLOITS)
def test_an_exploit_does_not_run(tmp_path, exploit, write):
    marker = tmp_path / "marker"
    pickled = EXPLOITS[exploit](marker)
    pickle.loads(pickled)
    assert marker.exists(), "the exploit must work, or refusing it shows nothing"
    marker.unlink()
    refusal(write(tmp_path / "hostile.pt", pickled))
    assert not marker.exists()


def test_the_state_of_the_allowed_class_cannot_call(tmp_path):
    marker = tmp_path / "marker"
    call = b"cos\nsystem\nV" + short(f"touch '{marker}'") + b"\x85R"
    normal = b"ctorch.distributions.multivariate_normal\nMultivariateNormal\n)\x81"
    refusal(archive(tmp_path / "x.pt", b"\x80\x02" + normal + b"}X\x03\0\0\0loc" + call + b"sb."))
    assert not marker.exists()


@pytest.mark.parametrize(
    "value", [torch.nn.Linear(2, 2), torch.distributions.Normal(0.0, 1.0), Calls(sys.exit, 1)]
)
def test_other_classes_and_functions_are_refused_by_name(tmp_path, value):
    torch.save(value, tmp_path / "x.pt")
    message = refusal(tmp_path / "x.pt")
    assert "but only tensors and plain containers are allowed" in message
    name = "sys.exit" if isinstance(value, Calls) else type(value).__name__
    assert name in message


def test_the_class_is_allowed_only_while_a_file_is_read():
    load(PRIOR)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(PRIOR, weights_only=True)


def test_scripted_modules_are_refused(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated.
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "x.pt"))
    refusal(tmp_path / "x.pt")


@pytest.mark.parametrize("content", [b"", b"PK", b"hello", pickle.dumps({}), b"PK\x03\x04"])
def test_another_kind_of_file_is_refused(tmp_path, content):
    (tmp_path / "x.pt").write_bytes(content)
    assert "damaged or not a PyTorch file" in refusal(tmp_path / "x.pt")


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    assert "does not exist" in refusal(tmp_path / "absent.pt")
    assert "cannot be read" in refusal(tmp_path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("damaged")


@given(length=st.integers(0, PRIOR.stat().st_size - 1))
@settings(max_examples=50, deadline=None)
def test_every_truncation_is_an_error(folder, length):
    (folder / "x.pt").write_bytes(PRIOR.read_bytes()[:length])
    refusal(folder / "x.pt")


FLIPS = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6
)


@given(flips=FLIPS)
@settings(max_examples=200, deadline=None)
def test_changed_bytes_end_in_data_or_in_one_line(folder, flips):
    content = bytearray(PRIOR.read_bytes())
    for place, value in flips:
        content[int(place * len(content))] = value
    (folder / "y.pt").write_bytes(content)
    try:
        load(folder / "y.pt")
    except TorchFileError:
        refusal(folder / "y.pt")


def test_without_pytorch_the_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(
        UserError, match=r"needs PyTorch. Install it with: pip install -e '.\[torch\]'"
    ):
        load(PRIOR)


@pytest.mark.parametrize("version", ["2.5.1+cu124", "1.13.0"])
def test_versions_that_could_execute_a_file_are_refused(version, monkeypatch):
    monkeypatch.setattr(torch, "__version__", version)
    with pytest.raises(UserError, match=r"needs PyTorch 2\.6 or newer, but"):
        load(PRIOR)

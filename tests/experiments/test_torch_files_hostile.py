"""The reader of PyTorch files runs nothing, and refuses pickles that name or ask for too much."""

import copyreg
import os
import pickle

import pytest
import torch_file_bytes as torch_bytes
from torch_file_bytes import FLOAT, NORMAL, STORAGES, refusal_of

from experiments.torch_files import read_torch_file

ARRAY = torch_bytes.tensor(FLOAT, (4,), (1,))


class Calls:
    """Pickles as the call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def nested_global(marker):
    function = torch_bytes.literal("os") + torch_bytes.literal("path.os.system") + b"\x93"
    return torch_bytes.document(function + torch_bytes.literal(f"touch '{marker}'") + b"\x85R", 4)


def inst(marker):
    return f"(Vtouch '{marker}'\nios\nsystem\n.".encode()


def obj(marker):
    return b"(" + torch_bytes.name("os.system") + torch_bytes.literal(f"touch '{marker}'") + b"o."


def discarded(marker):
    call = torch_bytes.call("os.system", torch_bytes.literal(f"touch '{marker}'"))
    return torch_bytes.document(call + b"0" + torch_bytes.literal({"step": 1}))


def as_state(marker):
    call = torch_bytes.call("os.system", torch_bytes.literal(f"touch '{marker}'"))
    state = torch_bytes.dictionary(a=call)
    return torch_bytes.document(torch_bytes.EMPTY_ORDERED_DICT + state + b"b")


EXPLOITS = {
    **{
        f"os.system protocol {protocol}": (
            lambda marker, protocol=protocol: pickle.dumps(
                Calls(os.system, f"touch '{marker}'"), protocol
            ),
            f"'{os.system.__module__}.system'",
        )
        for protocol in range(6)
    },
    "eval": (
        lambda marker: pickle.dumps(Calls(eval, f"open({str(marker)!r}, 'w').close()"), 4),
        "'builtins.eval'",
    ),
    "nested global": (nested_global, "'os.path.os.system'"),
    "INST": (inst, "'os.system'"),
    "OBJ": (obj, "'os.system'"),
    "call whose result is dropped": (discarded, "'os.system'"),
    "call inside a state": (as_state, "'os.system'"),
}


@pytest.mark.parametrize("exploit", EXPLOITS)
def test_an_exploit_is_named_and_does_not_run(tmp_path, exploit):
    make, named = EXPLOITS[exploit]
    marker = tmp_path / "marker"
    pickle.loads(make(marker))
    assert marker.exists(), "the exploit must work, or refusing it shows nothing"
    marker.unlink()
    assert named in refusal_of(tmp_path, make(marker))
    assert not marker.exists()


def test_a_copyreg_extension_code_is_refused_and_does_not_run(tmp_path):
    marker = tmp_path / "marker"
    code = f"open({str(marker)!r}, 'w').close()"
    pickled = b"\x80\x02\x82\xf0(" + torch_bytes.literal(code) + b"tR."
    copyreg.add_extension("builtins", "eval", 0xF0)
    try:
        pickle.loads(pickled)
        assert marker.exists()
        marker.unlink()
        assert "extension code 240" in refusal_of(tmp_path, pickled)
    finally:
        copyreg.remove_extension("builtins", "eval", 0xF0)
        copyreg.clear_extension_cache()
    assert not marker.exists()


@pytest.mark.parametrize(
    "dotted",
    [
        "torch.storage._load_from_bytes",
        "torch.load",
        "torch.FloatTensor",
        "torch.ComplexFloatStorage",
        "torch.UntypedStorage",
        "torch._utils._rebuild_tensor",
        "torch.nn.modules.linear.Linear",
        "torch.distributions.normal.Normal",
        "builtins.getattr",
        "builtins.object",
        "collections.Counter",
        "argparse.Namespace",
        "numpy._core.multiarray._reconstruct",
        "numpy.dtype",
        "copyreg._reconstructor",
        "experiments.torch_files.read_torch_file",
        "module." + "x" * 1000,
    ],
)
def test_every_other_global_is_refused_by_its_name_however_it_is_spelled(tmp_path, dotted):
    module, _, attribute = dotted.rpartition(".")
    spelled = torch_bytes.literal(module) + torch_bytes.literal(attribute) + b"\x93"
    for body in (torch_bytes.name(dotted), spelled):
        message = refusal_of(tmp_path, torch_bytes.document(body, protocol=4))
        assert dotted[:100] in message
        assert "only tensors, plain containers and" in message


@pytest.mark.parametrize(
    "persistent_id",
    [
        torch_bytes.literal("0"),
        torch_bytes.literal(("storage", "FloatStorage", "0", "cpu", 4)),
        b"(" + ARRAY + FLOAT[1:-1].removeprefix(torch_bytes.literal("storage")),
        torch_bytes.literal(("module", None, "0", "cpu", 4)),
        b"("
        + torch_bytes.literal("storage")
        + torch_bytes.name("torch.Size")
        + b"K\x00K\x00K\x04t",
        FLOAT[:-1].replace(torch_bytes.literal("0"), torch_bytes.literal(0)),
        FLOAT[:-1].replace(b"K\x04t", b"K\x04K\x04t"),
        FLOAT[:-1].replace(b"K\x04t", torch_bytes.literal(4.0) + b"t"),
    ],
)
def test_a_persistent_id_of_a_wrong_form_is_refused(tmp_path, persistent_id):
    pickled = torch_bytes.document(persistent_id + b"Q")
    assert "persistent id" in refusal_of(tmp_path, pickled, STORAGES)


def test_a_persistent_id_of_protocol_0_is_refused(tmp_path):
    assert "persistent id" in refusal_of(tmp_path, b"P0\n.", STORAGES)


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (torch_bytes.call("torch.FloatStorage"), "calls 'torch.FloatStorage'"),
        (torch_bytes.call("collections.OrderedDict", b"]"), "calls 'collections.OrderedDict'"),
        (torch_bytes.call("builtins.set", b"K\x01"), "calls 'builtins.set'"),
        (torch_bytes.call("_codecs.encode", b"NN"), "calls '_codecs.encode'"),
        (torch_bytes.call("torch.Size", b"]"), "size"),
        (torch_bytes.call("torch.Size", torch_bytes.literal((-1,))), "size"),
        (torch_bytes.call("torch._utils._rebuild_tensor_v2", b"N"), "a tensor"),
        (torch_bytes.call("torch._utils._rebuild_parameter", b"N"), "a parameter"),
        (NORMAL + b")R", "calls 'torch.distributions"),
        (NORMAL + b"K\x01\x85\x81", "creates an object"),
        (b"ccollections\nOrderedDict\n)\x81", "creates an object"),
        (b"K\x01)R", "not a function"),
        (torch_bytes.call("_codecs.encode", torch_bytes.literal("a"), ARRAY), "calls '_codecs"),
        (NORMAL + ARRAY + b"\x81", "creates an object"),
        (ARRAY + ARRAY + b"R", "not a function"),
        (torch_bytes.name("torch.Size") + ARRAY + b"R", "not a function"),
        (torch_bytes.call("torch._utils._rebuild_tensor_v2", ARRAY * 6), "a tensor"),
        (torch_bytes.EMPTY_ORDERED_DICT + b"}N\x86b", "sets the state"),
        (b"}}b", "sets the state"),
        (torch_bytes.tensor(FLOAT, (4,), (1,)) + b"}b", "sets the state"),
        (NORMAL + b")\x81}K\x01K\x01sb}b", "sets the state"),
        (NORMAL + b")\x81]b", "sets the state"),
        (NORMAL, "global 'torch.distributions"),
        (b"]" + torch_bytes.name("torch.FloatStorage") + b"a", "global 'torch.FloatStorage'"),
        (FLOAT, "bare _Storage"),
        (b"}}K\x01s", "uses a dict as a key"),
        (b"}N)s", None),
        (b"}K\x01K\x02s)K\x01a", "appends"),
        (b"]K\x01K\x02s", "sets items"),
        (b"](K\x01\x90", "adds items"),
        (b"\x8f()\x90", "uses a tuple as an element of a set"),
        (b"K\x01K\x02\x93", "other than text"),
    ],
)
def test_allowed_names_in_other_roles_are_refused(tmp_path, body, problem):
    if problem is None:
        torch_bytes.write(tmp_path / "good.pt", torch_bytes.document(body))
        assert read_torch_file(tmp_path / "good.pt") == {None: ()}
    else:
        assert problem in refusal_of(tmp_path, torch_bytes.document(body), STORAGES)


@pytest.mark.parametrize(
    ("pickled", "opcode"),
    [
        (b"NN0.", "POP"),
        (b"(N1.", "POP_MARK"),
        (b"N2.", "DUP"),
        (b"S'\\z'\n.", "STRING"),
        (b"U\x01a.", "SHORT_BINSTRING"),
        (b"\x96" + bytes(8) + b".", "BYTEARRAY8"),
        (b"\x97.", "NEXT_BUFFER"),
        (b"N\x98.", "READONLY_BUFFER"),
        (b"(\x91.", "FROZENSET"),
        (b"(" + NORMAL + b"o.", "OBJ"),
        (NORMAL + b")}\x92.", "NEWOBJ_EX"),
    ],
)
def test_every_opcode_not_needed_is_refused(tmp_path, pickled, opcode):
    assert f"opcode {opcode}, which is refused" in refusal_of(tmp_path, pickled)


@pytest.mark.parametrize(
    "pickled",
    [
        b"",
        b".",
        b"N",
        b"NN.",
        b"(N.",
        b"a.",
        b"Na.",
        b"]a.",
        b"s.",
        b"R.",
        b"b.",
        b"Q.",
        b"u.",
        b"t.",
        b"\x93.",
        b"h\x07.",
        b"q\x00.",
        b"\x94.",
        b"\xff.",
        b"Ix\n.",
        b"X\xff\xff\xff\xff.",
        b"X\x01\0\0\0\xff.",
        b"\x8d" + b"\xff" * 8 + b".",
        b"\x8b\xff\xff\xff\x7f.",
        b"\x8b\xff\xff\xff\xff.",
        b"}(K\x01u.",
        b"cos\n",
        b"F1e\n.",
    ],
)
def test_a_damaged_pickle_is_an_error(tmp_path, pickled):
    assert "pickle" in refusal_of(tmp_path, pickled)


def shared_tuples(count):
    """Tuples that each hold the one before twice, all in one: as a tree, 2 ** count of them."""
    return b"()q\x00" + b"h\x00h\x00\x86q\x00" * count + b"t"


LONG_TEXT = torch_bytes.literal("a" * 10**5)


def copies(value, dotted, *arguments, count=50):
    """Copies of one value, made by a function."""
    copy = torch_bytes.name(dotted) + b"(h\x07" + b"".join(arguments) + b"tR"
    return b"(" + value + b"q\x07" + copy * count + b"t"


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"\x80\x06N", "protocol 6"),
        (b"N" * 2**20, "bytes, more than"),
        (torch_bytes.literal(2**64), "64 bits"),
        (b"]q\x00h\x00a", "contains itself"),
        (b"}q\x00K\x01h\x00s", "contains itself"),
        (b"]" + b"]" * 70 + b"a" * 70, "nests more than"),
        (b")" + b"\x85" * 10**5, "nests more than"),
        (shared_tuples(30), "describes more than"),
        (b"}" + shared_tuples(60) + b"Ns", "uses a tuple as a key"),
        (b"}" + b")" + b"\x85" * 10**5 + b"Ns", "uses a tuple as a key"),
        (copies(b"](" + b"N" * 10**5 + b"e", "builtins.set"), "copies more than"),
        (copies(LONG_TEXT, "_codecs.encode", torch_bytes.literal("latin1")), "copies more than"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_pickle_that_would_take_for_ever_is_refused(tmp_path, body, problem):
    assert problem in refusal_of(tmp_path, torch_bytes.document(body))


def test_a_huge_memo_index_takes_no_memory(tmp_path):
    path = torch_bytes.write(tmp_path / "x.pt", b"Nr\xff\xff\xff\xff.")
    assert read_torch_file(path) is None

"""The inert values that stand for what a pickle mentions, and the check of a finished object."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from experiments.torch_files.errors import TorchFileError, shown

_MAX_DEPTH = 64
_MAX_NODES = 2**20

ALLOWED = "only tensors, plain containers and torch.distributions.MultivariateNormal are read"


@dataclass(frozen=True, slots=True)
class Global:
    """The name of a Python object that a pickle mentions; never looked up.

    Attributes:
        name: Dotted, such as ``"torch.FloatStorage"``.
    """

    name: str


@dataclass(eq=False, slots=True)
class Instance:
    """The attributes of a pickled object of an allowed class, which itself is never created.

    Attributes:
        name: Dotted name of the class.
        state: Attribute names and values.
    """

    name: str
    state: dict[object, object] = field(default_factory=dict)


class Vocabulary(NamedTuple):
    """What a pickle may mention.

    Attributes:
        functions: For each callable that it may apply, by dotted name, our own stand-in; it
            receives the tuple of arguments found in the file and checks it.
        classes: Classes whose instances are read as ``Instance``.
        names: Names that may appear as arguments only.
        load_persistent: Turns a persistent id into a value and checks it.
        data_types: Further types, as returned by the stand-ins, that the finished object may hold.
    """

    functions: Mapping[str, Callable[[tuple[object, ...]], object]]
    classes: frozenset[str]
    names: frozenset[str]
    load_persistent: Callable[[object], object]
    data_types: frozenset[type]


def refused(name: str) -> TorchFileError:
    """The error for a global that is not allowed, which it names."""
    return TorchFileError(f"holds the global {shown(name)}, which is refused: {ALLOWED}")


def check_key(key: object, role: str) -> None:
    """Refuses all but scalars: to hash a nested tuple can take for ever or overflow the C stack."""
    if not (key is None or isinstance(key, str | int | float | bytes)):
        raise TorchFileError(f"its pickle uses a {type(key).__name__} as {role}, which is refused")


def check_finished(root: object, data_types: frozenset[type]) -> None:
    """Refuses cycles, what is no data, and objects too deep or too large to walk.

    A value may be shared, so the size counted is that of the tree that a walk over it would see:
    with a few dozen lists that each hold the next one twice, such a walk would never end.

    Args:
        root: The finished object.
        data_types: Types allowed besides the plain ones.

    Raises:
        TorchFileError: It must not be handed to a caller.
    """
    leaves = data_types | {str, bytes, int, float, bool, type(None)}
    sizes: dict[int, tuple[int, int]] = {}  # Object id -> (nodes, height), once known.
    entered: set[int] = set()

    def measure(value: object, depth: int) -> tuple[int, int]:
        if type(value) in leaves:
            return 1, 0
        identity = id(value)
        if identity in entered:
            raise TorchFileError("its pickle holds an object that contains itself")
        nodes, height = sizes.get(identity, (1, 1))
        if depth + height > _MAX_DEPTH:
            raise TorchFileError(f"its pickle nests more than {_MAX_DEPTH} containers")
        if identity not in sizes:
            entered.add(identity)
            for child in _children(value):
                child_nodes, child_height = measure(child, depth + 1)
                nodes, height = nodes + child_nodes, max(height, 1 + child_height)
            entered.remove(identity)
            sizes[identity] = nodes, height
        if nodes > _MAX_NODES:
            raise TorchFileError(f"its pickle describes more than {_MAX_NODES} values")
        return nodes, height

    measure(root, 0)


def _children(value: object) -> list[object]:
    if isinstance(value, Global):
        raise refused(value.name)
    if isinstance(value, Instance):
        return list(value.state.values())
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, list | tuple | set):
        return list(value)
    raise TorchFileError(f"its pickle leaves a bare {type(value).__name__} in the object")

"""An interpreter of pickles that builds inert data and cannot call, import or look up anything.

Why not ``pickle.Unpickler`` with ``find_class`` overridden: it still calls ``__setstate__``, hashes
whatever it is told to use as a key (a tuple nested deeply enough ends the process, one that shares
its parts takes exponential time) and sizes its memo by a number in the file. Here every opcode is
on a short list, every name in the pickle stays a string, and every size is bounded. The standard
library's ``pickletools.genops`` splits the bytes into opcodes; it executes none.

Why not a library: those found that read such files into numpy either resolve any global that they
do not know, or lack bfloat16, big-endian files, bounds and the pickled distribution.
"""

import pickletools
import warnings
from collections import OrderedDict

from experiments.torch_files.errors import TorchFileError, shown
from experiments.torch_files.inert import (
    Global,
    Instance,
    Vocabulary,
    check_finished,
    check_key,
    refused,
)

_MAX_PICKLE_BYTES = 2**20  # The pickle of a network takes about 100 bytes a tensor.
_MAX_PROTOCOL = 5
_MAX_COPIED_ITEMS = 2**22  # Over all copies: a memoised value may be copied any number of times.

_NUMBERS = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT")
_TEXTS = ("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")
_BYTES = ("BINBYTES", "SHORT_BINBYTES", "BINBYTES8")
_LITERALS = frozenset((*_NUMBERS, *_TEXTS, *_BYTES))
_CONSTANTS: dict[str, object] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLE_LENGTHS = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MEMO_PUTS = frozenset(("PUT", "BINPUT", "LONG_BINPUT"))
_MEMO_GETS = frozenset(("GET", "BINGET", "LONG_BINGET"))

# How pickles spell those plain containers that have no opcode in their protocol.
_SETS = ("builtins.set", "__builtin__.set")
_EMPTY_BYTES = ("builtins.bytes", "__builtin__.bytes")
_CONTAINERS = frozenset((*_SETS, *_EMPTY_BYTES, "collections.OrderedDict", "_codecs.encode"))


def interpret(pickled: bytes, vocabulary: Vocabulary) -> object:
    """Builds the object that a pickle describes, out of inert data only.

    Args:
        pickled: The bytes of the pickle, protocol 0 to 5.
        vocabulary: What it may mention.

    Returns:
        Numbers, strings, bytes, ``None``, dictionaries, lists, tuples and sets of these,
        ``Instance`` and the vocabulary's data types; free of reference cycles.

    Raises:
        TorchFileError: The pickle is damaged, too large, or mentions anything else, which is named.
    """
    if len(pickled) > _MAX_PICKLE_BYTES:
        raise TorchFileError(f"its pickle has {len(pickled)} bytes, more than {_MAX_PICKLE_BYTES}")
    machine = _Machine(vocabulary)
    try:
        with warnings.catch_warnings():
            # genops decodes the text of an opcode that is then refused, and may warn about it.
            warnings.simplefilter("ignore", DeprecationWarning)
            for opcode, argument, _ in pickletools.genops(pickled):
                machine.step(opcode.name, argument)
    except TorchFileError:
        raise
    except (IndexError, KeyError) as error:
        raise TorchFileError("its pickle is damaged: an opcode lacks its operand") from error
    except ValueError as error:  # What genops raises on bytes that are no opcodes.
        raise TorchFileError(f"its pickle is damaged: {shown(str(error))}") from error
    finished = machine.result()
    check_finished(finished, vocabulary.data_types)
    return finished


class _Machine:
    """The pickle machine: a stack, the stacks set aside by MARK, and the memo."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._stack: list[object] = []
        self._marked: list[list[object]] = []
        self._memo: dict[object, object] = {}
        self._copied_items = 0

    def result(self) -> object:
        """Returns the one object left on the stack."""
        if self._marked or len(self._stack) != 1:
            raise TorchFileError("its pickle is damaged: it does not end with one object")
        return self._stack[0]

    def step(self, opcode: str, argument: object) -> None:
        """Carries out one opcode; IndexError or KeyError where an operand is missing."""
        stack = self._stack
        if opcode in _LITERALS:
            stack.append(_literal(argument))
        elif opcode in _MEMO_PUTS:
            self._memo[argument] = stack[-1]
        elif opcode in _MEMO_GETS:
            stack.append(self._memo[argument])
        elif opcode in _TUPLE_LENGTHS:
            stack.append(self._pop(_TUPLE_LENGTHS[opcode]))
        elif opcode in _CONSTANTS:
            stack.append(_CONSTANTS[opcode])
        elif not self._step_container(opcode):
            self._step_name(opcode, argument)

    def _step_container(self, opcode: str) -> bool:
        match opcode:
            case "MARK":
                self._marked.append(self._stack)
                self._stack = []
            case "MEMOIZE":
                self._memo[len(self._memo)] = self._stack[-1]
            case "EMPTY_DICT":
                self._stack.append({})
            case "EMPTY_LIST":
                self._stack.append([])
            case "EMPTY_SET":
                self._stack.append(set())
            case "TUPLE":
                items = self._pop_marked()
                self._stack.append(tuple(items))
            case "LIST":
                items = self._pop_marked()
                self._stack.append(items)
            case "DICT":
                items = self._pop_marked()
                self._stack.append(_set_items({}, items))
            case "APPEND" | "APPENDS":
                items = list(self._pop(1)) if opcode == "APPEND" else self._pop_marked()
                _append(self._stack[-1], items)
            case "SETITEM" | "SETITEMS":
                items = list(self._pop(2)) if opcode == "SETITEM" else self._pop_marked()
                _set_items(self._stack[-1], items)
            case "ADDITEMS":
                items = self._pop_marked()
                _add_items(self._stack[-1], items)
            case _:
                return False
        return True

    def _step_name(self, opcode: str, argument: object) -> None:
        stack = self._stack
        match opcode:
            case "GLOBAL":
                stack.append(self._mention(str(argument).replace(" ", ".")))
            case "INST":
                raise refused(str(argument).replace(" ", "."))
            case "STACK_GLOBAL":
                module, name = self._pop(2)
                if not (isinstance(module, str) and isinstance(name, str)):
                    raise TorchFileError("its pickle names a global by something other than text")
                stack.append(self._mention(f"{module}.{name}"))
            case "REDUCE":
                stack.append(self._apply(*self._pop(2)))
            case "NEWOBJ":
                stack.append(self._instance(*self._pop(2)))
            case "BUILD":
                (state,) = self._pop(1)
                _set_state(stack[-1], state)
            case "BINPERSID":
                stack.append(self._vocabulary.load_persistent(stack.pop()))
            case "PERSID":
                stack.append(self._vocabulary.load_persistent(argument))
            case "EXT1" | "EXT2" | "EXT4":
                raise TorchFileError(f"holds the extension code {argument}, which is refused")
            case "PROTO":
                if not isinstance(argument, int) or argument > _MAX_PROTOCOL:
                    raise TorchFileError(f"its pickle has the unknown protocol {argument}")
            case "FRAME" | "STOP":
                pass  # A frame only tells how many bytes to read ahead.
            case _:
                raise TorchFileError(f"its pickle holds the opcode {opcode}, which is refused")

    def _pop(self, length: int) -> tuple[object, ...]:
        if len(self._stack) < length:
            raise IndexError("the stack is too short")
        return tuple(self._stack.pop() for _ in range(length))[::-1]

    def _pop_marked(self) -> list[object]:
        items = self._stack
        self._stack = self._marked.pop()
        return items

    def _mention(self, name: str) -> Global:
        known = self._vocabulary
        if name in _CONTAINERS | known.names | known.classes or name in known.functions:
            return Global(name)
        raise refused(name)

    def _apply(self, function: object, arguments: object) -> object:
        if not isinstance(function, Global) or type(arguments) is not tuple:
            raise TorchFileError("its pickle calls something that is not a function")
        if function.name in self._vocabulary.functions:
            return self._vocabulary.functions[function.name](arguments)
        match function.name, arguments:
            case "collections.OrderedDict", ():
                return OrderedDict()
            case name, () if name in _EMPTY_BYTES:
                return b""
            case "_codecs.encode", (str(text), str(encoding)) if encoding == "latin1":
                self._count_copied(len(text))
                return text.encode("latin1")
            case name, (list(items),) if name in _SETS:
                self._count_copied(len(items))
                return _add_items(set(), items)
        raise TorchFileError(f"its pickle calls {shown(function.name)} in a way that is refused")

    def _count_copied(self, count: int) -> None:
        self._copied_items += count
        if self._copied_items > _MAX_COPIED_ITEMS:
            raise TorchFileError(f"its pickle copies more than {_MAX_COPIED_ITEMS} items")

    def _instance(self, cls: object, arguments: object) -> Instance:
        match cls, arguments:
            case Global(name), () if name in self._vocabulary.classes:
                return Instance(name)
        raise TorchFileError("its pickle creates an object in a way that is refused")


def _literal(value: object) -> object:
    # No checkpoint needs longer integers; as keys they could be made to collide.
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise TorchFileError("its pickle holds an integer of more than 64 bits")
    return value


def _append(target: object, items: list[object]) -> None:
    if type(target) is not list:
        raise TorchFileError("its pickle appends to something that is not a list")
    target.extend(items)


def _set_items(target: object, items: list[object]) -> object:
    if not isinstance(target, dict) or len(items) % 2:
        raise TorchFileError("its pickle sets items of something that is not a dictionary")
    for key, value in zip(items[::2], items[1::2], strict=True):
        check_key(key, "a key")
        target[key] = value
    return target


def _add_items(target: object, items: list[object]) -> object:
    if type(target) is not set:
        raise TorchFileError("its pickle adds items to something that is not a set")
    for item in items:
        check_key(item, "an element of a set")
        target.add(item)
    return target


def _set_state(target: object, state: object) -> None:
    if type(target) is OrderedDict and type(state) is dict:
        return  # The attribute _metadata of a state_dict: versions of modules, of no use here.
    if not isinstance(target, Instance) or target.state or type(state) is not dict:
        raise TorchFileError("its pickle sets the state of an object in a way that is refused")
    target.state = state

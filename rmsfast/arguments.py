"""The forms in which parameters and gradients come: each is checked, and becomes arrays and groups."""

import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any

import numpy as np

from rmsfast._core import steps
from rmsfast._core.arrays import ArrayPlan
from rmsfast._core.rows import SummedRows
from rmsfast.rows import Rows, is_sparse, whole_rows
from rmsfast.settings import (
    SETTINGS,
    Array,
    ParamGroup,
    as_settings,
    check_formats,
    check_together,
    count_of,
    did_you_mean,
)

FORMS = "an array, a sequence or mapping of arrays, which may be nested, or a sequence of groups"
DEEPEST = 64  # a list in a list, and so on
OMITTED = object()  # in the place of a gradient whose name a mapping lacks


def as_array(label: str, value: Any, dtype: str = "float32") -> Array:
    """Return an ndarray as it is, or one over the memory that another object shares; never a copy.

    Where a list of numbers was given, the message proposes an array of this `dtype`.
    """
    if type(value) is np.ndarray:
        return value
    if isinstance(value, np.ndarray):
        if "numpy.ma" in sys.modules and isinstance(value, np.ma.MaskedArray):
            raise TypeError(f"{label}: a masked array, expected an array without a mask: .filled(0) returns one")
        return value
    if is_tensor(value):
        return as_array_of(label, value)
    came = f"{label}: {type(value).__name__}, expected a NumPy array"
    if not isinstance(value, np.generic) and is_of_numbers(value):
        raise TypeError(f"{came}: np.array(numbers, dtype=np.{dtype}) makes one")
    if isinstance(value, (list, tuple, Mapping)):
        raise TypeError(came)
    try:
        return np.from_dlpack(value) if hasattr(value, "__dlpack__") else np.asarray(memoryview(value))
    except Exception as error:
        raise TypeError(
            f"{came}, or an object that shares its memory by DLPack or the buffer protocol ({error})"
        ) from error


def is_of_numbers(value: Any) -> bool:
    """Whether a value is a number, or a list of numbers, perhaps in lists."""
    for _ in range(64):  # the most axes that an array can have
        if type(value) not in (list, tuple) or not value:
            break
        value = value[0]
    return isinstance(value, (bool, int, float, complex, np.number))


def is_tensor(value: Any) -> bool:
    """Whether a value is one of PyTorch's tensors."""
    tensor = getattr(sys.modules.get("torch"), "Tensor", None)  # without the module, there are none
    return isinstance(tensor, type) and isinstance(value, tensor)


def as_array_of(label: str, tensor: Any) -> Array:
    """Return an array over the memory of one of PyTorch's tensors, or raise.

    After `numpy`, PyTorch refuses to resize this memory; after DLPack it does not. The array refers to a tensor of its
    own, made by `detach`, so the memory stays when the user's tensor gets another.
    """
    if tensor.requires_grad:
        raise TypeError(
            f"{label}: a tensor that requires grad, expected one that does not: pass tensor.detach(), or use "
            "rmsfast.torch.RMSprop"
        )
    for name, bit in ("conj", "conjugate"), ("neg", "negative"):
        if getattr(tensor, f"is_{name}")():
            raise TypeError(
                f"{label}: a tensor with the {bit} bit, expected its values in memory: tensor.resolve_{name}() has them"
            )
    try:
        array = tensor.detach().numpy()
    except Exception as error:
        raise TypeError(
            f"{label}: a tensor that NumPy cannot show, expected a dense one on the CPU, of a dtype that NumPy has "
            f"({error})"
        ) from error
    return array  # type: ignore[no-any-return]


class Loan:
    """Memory that another object owns, such as a tensor, a map or a ctypes array, and where it was when it was given.

    Some owners can move or free such memory at any time. So each call that will use it checks first.
    """

    def __init__(self, label: str, owner: Any, place: tuple[int, int], bound: bool) -> None:
        self.label: str = label
        self.owner: Any = owner
        self.place: tuple[int, int] = place
        self.bound: bool = bound

    def check(self) -> None:
        """Raise if the memory has been moved or freed."""
        if place_of(self.owner) != self.place:
            raise ValueError(
                f"{self.label}: the {type(self.owner).__name__} that owns its memory moved or freed it, expected it to "
                f"stay: {'bind the gradients again' if self.bound else 'make a new optimizer'}"
            )


def as_loans(kind: str, keys: Sequence[Any], arrays: Sequence[Array | None], single: bool = False) -> list[Loan]:
    """Return a loan for each array, of the `kind` "params" or "grads", whose memory another object owns."""
    loans = []
    for key, array in zip(keys, arrays, strict=True):
        owner = None if array is None else owner_of(array)
        place = None if owner is None else place_of(owner)
        if place is not None:
            loans.append(Loan(label_of(kind, key, single), owner, place, kind == "grads"))
    return loans


def owner_of(array: Array) -> Any:
    """Return the object whose memory an array shows, or None if that is an array, or cannot move the memory."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, memoryview):
        base = base.obj
        if type(base).__module__ in ("array", "builtins", "mmap"):
            return None  # these refuse to move or free memory that a memoryview shows
    return None if type(base) is bytes else base


def place_of(owner: Any) -> tuple[int, int] | None:
    """Return where an object's memory is and how many bytes it has, or None if it has none or cannot say."""
    try:
        if is_tensor(owner):
            storage = owner.untyped_storage()
            return storage.data_ptr(), storage.nbytes()
        memory = np.frombuffer(owner, np.uint8)
    except Exception:  # as from a map that was closed
        return None
    return memory.__array_interface__["data"][0], memory.nbytes


def label_of(kind: str, key: Any, single: bool) -> str:
    """Return what messages call an array, as `grads[3]`, or `grads` where it is the `single` one."""
    return kind if single else f"{kind}[{key!r}]"


def is_array(value: Any) -> bool:
    """Whether a value is meant as one array."""
    if isinstance(value, np.ndarray) or hasattr(value, "__dlpack__"):
        return True
    try:
        memoryview(value).release()
    except Exception:
        return False
    return True


def is_gradient(value: Any) -> bool:
    """Whether a value is meant as the gradient of one parameter."""
    return isinstance(value, Rows) or is_sparse(value) or is_array(value)


def as_gradient(label: str, value: Any, w: Array, erases: bool) -> Array | SummedRows | None:
    """Return one gradient in the plan's form: an ndarray of no subclass, the rows of the parameter w, or None.

    A step that `erases` gradients cannot take a copy.
    """
    if value is None:
        return None
    if is_sparse(value):
        if erases:
            raise TypeError(f"{label}: a sparse matrix, expected an array or Rows, because zero_grads sets it to zero")
        value = whole_rows(label, value, w.shape)
    if isinstance(value, Rows):
        values = as_array(f"{label}.values", value.values, str(w.dtype))
        return SummedRows(label, w, value.indices, np.asarray(values))
    return np.asarray(as_array(label, value, str(w.dtype)))


def as_sequence(label: str, value: Any, expected: str) -> list[Any]:
    """Return the elements of a sequence or iterator as a list, or raise."""
    if isinstance(value, (str, bytes, set, frozenset)) or not isinstance(value, Iterable):
        raise TypeError(f"{label}: {type(value).__name__}, expected {expected}")
    return list(value)


def is_branch(value: Any) -> bool:
    """Whether a value is a list, tuple or mapping that has parameters or gradients in it, and no list of numbers."""
    return isinstance(value, (list, tuple, Mapping)) and not is_gradient(value) and not is_of_numbers(value)


def leaves(label: str, tree: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield what is in a tree of lists, tuples and mappings, each with its path, as "layers.0.W"."""
    if depth > DEEPEST:
        raise ValueError(f"{label}: nested more than {DEEPEST} deep, expected less")
    for key, value in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
        name = f"{path}{key}" if type(key) is int and not isinstance(tree, Mapping) else path + as_name(key, label)
        if is_branch(value):
            yield from leaves(label, value, f"{name}.", depth + 1)
        else:
            yield name, value


def as_params(params: Any, first: int = 0, alone: bool = False) -> tuple[list[str] | None, list[Array]]:
    """Return the names, if there are any, and the arrays of one group.

    Messages name the arrays by index, from `first` on. An array `alone` is all that the optimizer has: it has no index.
    """
    if is_array(params):
        return None, [as_array("params" if alone else f"params[{first}]", params)]
    tree = params if isinstance(params, Mapping) else as_sequence("params", params, FORMS)
    if isinstance(tree, Mapping) or any(map(is_branch, tree)):
        named = list(leaves("params", tree))
        return [name for name, _ in named], [as_array(f"params[{name!r}]", value) for name, value in named]
    return None, [as_array(f"params[{i}]", value) for i, value in enumerate(tree, first)]


def as_name(name: Any, label: str = "params") -> str:
    """Return a parameter's name as a str of no subclass, or raise."""
    if not isinstance(name, str):
        raise TypeError(f"{label}: {name!r:.60} as a name, expected a str")
    return str.__str__(name)


def as_groups(params: Any) -> list[Mapping[str, Any]]:
    """Return params, in any of its forms, as a list of groups."""
    if is_array(params):
        return [{"params": params}]
    members: Any = params if isinstance(params, Mapping) else as_sequence("params", params, FORMS)
    if isinstance(members, list) and any(isinstance(member, Mapping) and "params" in member for member in members):
        return members
    for i, member in enumerate([members] if isinstance(params, Mapping) else members):
        if isinstance(member, Mapping) and any(is_setting(name, value) for name, value in member.items()):
            raise TypeError(
                f"param_groups[{i}]: {member!r:.60}, expected a mapping with 'params' and settings, in a sequence: "
                "[{'params': [W, b], 'lr': 0.1}]"
            )
    if is_branch(members) and next(leaves("params", members), None) is None:
        raise ValueError("params: empty, expected at least one array")
    return [{"params": members}]


def is_setting(name: Any, value: Any) -> bool:
    """Whether this is a setting, and no array or tree of arrays that has the same name."""
    return isinstance(name, str) and name in SETTINGS and not is_array(value) and not is_branch(value)


def in_line(grads: Any, keys: Sequence[Any], named: bool, label: str = "grads") -> list[Any]:
    """Return the gradients of the parameters `keys`, in this order. They come in one of the forms of `params`."""
    noun = "array" if label.startswith("copies") else "gradient"
    count = count_of(len(keys), noun)
    if isinstance(grads, Mapping):
        if not named:
            raise TypeError(
                f"{label}: a mapping, expected a sequence of {count}, because the parameters have no names: give "
                "`params` as a mapping to name them"
            )
        return by_name(grads, keys, label)
    if len(keys) == 1 and is_gradient(grads):
        return [grads]
    if is_gradient(grads):
        raise TypeError(f"{label}: one array, expected a sequence of {count}, one for each parameter")
    line = as_sequence(label, grads, f"a {'mapping' if named else 'sequence'} of {count}")
    if named and (any(map(is_branch, line)) or (len(line) != len(keys) and fits(line, keys))):
        return by_name(line, keys, label)
    if len(line) != len(keys):
        raise ValueError(
            f"{label}: {count_of(len(line), noun)}, expected {len(keys)}: an array or None for each parameter"
        )
    return line


def fits(tree: Any, keys: Sequence[Any]) -> bool:
    """Whether all paths of a tree of gradients are those of parameters."""
    known = set(keys)
    return all(name in known or (value is None and below(name, keys)) for name, value in leaves("grads", tree))


def below(name: str, keys: Sequence[Any]) -> list[Any]:
    """Return the keys of the parameters that are below a path."""
    return [key for key in keys if key.startswith(f"{name}.")]


def by_name(tree: Any, keys: Sequence[Any], label: str) -> list[Any]:
    """Return the gradients of the parameters `keys` from a tree, with OMITTED for a name that a mapping lacks.

    None in the place of a list, tuple or mapping is None for all that is in it.
    """
    found = dict.fromkeys(keys, OMITTED)
    for name, value in leaves(label, tree):
        left_alone = below(name, keys) if value is None and name not in found else []
        if twice := [key for key in left_alone or [name] if found.get(key, OMITTED) is not OMITTED]:
            raise ValueError(f"{label}[{name!r}]: {twice[0]!r} is given twice, expected each gradient once")
        if name in found:
            found[name] = value
        elif left_alone:
            found |= dict.fromkeys(left_alone)
        else:
            for key in keys:
                if name.startswith(f"{key}."):
                    raise ValueError(
                        f"{label}[{key!r}]: a list, tuple or mapping, expected an array or None, as the parameter is "
                        "one array: rmsfast.Rows(indices, values) is the gradient of some of its rows"
                    )
            names = ", ".join(map(repr, keys[:10])) + ", …" * (len(keys) > 10)
            raise ValueError(
                f"{label}[{name!r}]: no parameter has this name, expected one of {names}{did_you_mean(name, keys)}"
            )
    for name, value in found.items():
        if value is OMITTED:
            check_length(tree, name, label)
    return list(found.values())


def check_length(tree: Any, name: str, label: str) -> None:
    """Raise if there is no gradient of this name because a list or tuple ends before it."""
    path = name.split(".")
    for i, part in enumerate(path):
        if isinstance(tree, Mapping) and part in tree:
            tree = tree[part]
        elif isinstance(tree, (list, tuple)):
            if not part.isdecimal() or int(part) >= len(tree):
                where = f"{label}[{'.'.join(path[:i])!r}]" if i else label
                raise ValueError(
                    f"{where}: {count_of(len(tree), 'entry', 'entries')}, expected more: a gradient or None for "
                    f"params[{name!r}]"
                )
            tree = tree[int(part)]
        else:
            return


def in_line_by_group(grads: Sequence[Any], groups: Sequence[Mapping[str, Any]], kind: str) -> list[Any]:
    """Return one gradient for each parameter, from gradients that were given for each group."""
    line: list[Any] = []
    for i, (entry, group) in enumerate(zip(grads, groups, strict=True)):
        names, size = group.get("param_names"), len(group["params"])
        if isinstance(entry, Mapping) and "params" in entry and "params" not in (names or ()):
            entry = entry["params"]
        if entry is None:
            line += [None] * size
        else:
            keys = range(size) if names is None else names
            line += in_line(entry, keys, names is not None, f"{kind} (param_groups[{i}])")
    return line


def as_group(
    group: Any, index: int, first: int, alone: bool, defaults: Mapping[str, Any], changed: steps.Flag
) -> ParamGroup:
    """Return a user's group as a ParamGroup, with settings from `defaults` where it has none.

    Messages call it by its `index`. See `as_params` for `first` and `alone`.
    """
    label = f"param_groups[{index}]"
    given = dict(group) if isinstance(group, Mapping) else {}  # read once: the next answer may be another
    if "params" not in given:
        raise TypeError(f"{label}: {group!r:.60}, expected a mapping with 'params' and settings")
    own = {name: value for name, value in given.items() if name not in ("params", "param_names")}
    settings = {**defaults, **as_settings(own, f"{label}[{{!r:.60}}]")}
    check_together(settings, "" if settings == defaults else f"{label}: ")
    names, arrays = as_params(given["params"], first, alone)
    if names is None and given.get("param_names") is not None:
        names = [
            as_name(name)
            for name in as_sequence(f"{label}['param_names']", given["param_names"], "a sequence of names")
        ]
        if len(names) != len(arrays):
            raise ValueError(
                f"{label}['param_names']: {count_of(len(names), 'name')}, expected {len(arrays)}, one for each array"
            )
    check_formats(settings, arrays, "" if settings == defaults else f"{label}: ")
    return ParamGroup(arrays, names, settings, changed)


def as_line(grads: Any, plan: ArrayPlan, erases: bool = False, kind: str = "grads") -> list[Any]:
    """Return one gradient or None for each parameter of a plan, from gradients in any form that is allowed.

    See `as_gradient` for `erases`. Messages call them by their `kind`.
    """
    if isinstance(grads, Iterable) and not isinstance(grads, Mapping) and not is_gradient(grads):
        grads = as_sequence(kind, grads, "a sequence of arrays")
        nested = any(isinstance(entry, (list, tuple, Mapping)) for entry in grads)
        if nested and len(grads) == len(plan.groups) and not (plan.named and fits(grads, plan.keys)):
            grads = in_line_by_group(grads, plan.groups, kind)
    line = in_line(grads, plan.keys, plan.named, kind)
    omitted = [key for key, g in zip(plan.keys, line, strict=True) if g is OMITTED]
    if omitted and kind == "grads" and not plan.may_omit:
        warn_of_omitted(omitted)
        plan.may_omit = True
    return [
        as_gradient(label_of(kind, key, plan.single), None if g is OMITTED else g, w, erases)
        for key, g, w in zip(plan.keys, line, plan.params, strict=True)
    ]


def warn_of_omitted(names: Sequence[str]) -> None:
    """Warn at the user's line that a mapping has no gradients of these names."""
    level = 1
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "rmsfast":
        level, frame = level + 1, frame.f_back
    listed = ", ".join(map(repr, names[:10])) + ", …" * (len(names) > 10)
    warnings.warn(
        f"grads: no gradient of {listed}, expected one for each name: a parameter without stays as it is. Give None "
        "for one that you leave alone on purpose. This is said once",
        stacklevel=level,
    )

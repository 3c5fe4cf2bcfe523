"""The forms in which parameters and gradients come."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rmsfast import _kernel
from rmsfast.rows import Rows, is_sparse, whole_rows
from rmsfast.settings import Array, ParamGroup, as_settings, check_together, count_of


def as_array(label: str, value: Any) -> Array:
    """Return an ndarray as it is, or one over the memory that another object hands over; never a copy."""
    if type(value) is np.ndarray:
        return value
    if isinstance(value, np.ndarray):
        if "numpy.ma" in sys.modules and isinstance(value, np.ma.MaskedArray):
            raise TypeError(f"{label}: a masked array, expected an array without a mask, such as its .filled(0)")
        return value
    if is_tensor(value):
        return as_array_of(label, value)
    wanted = "expected a NumPy array, or an object that hands its memory over by DLPack or the buffer protocol"
    try:
        return np.from_dlpack(value) if hasattr(value, "__dlpack__") else np.asarray(memoryview(value))
    except Exception as error:
        raise TypeError(f"{label}: {type(value).__name__}, {wanted} ({error})") from error


def is_tensor(value: Any) -> bool:
    """Whether a value is one of PyTorch's tensors."""
    tensor = getattr(sys.modules.get("torch"), "Tensor", None)  # without the module, there are none
    return isinstance(tensor, type) and isinstance(value, tensor)


def as_array_of(label: str, tensor: Any) -> Array:
    """Return an array over the memory of one of PyTorch's tensors, or raise.

    `numpy` makes PyTorch refuse every later resize of this memory, which DLPack does not. The array refers to a tensor
    of ours, `detach`'s, so that the memory stays when the user's tensor is given another.
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


class Loan(NamedTuple):
    """Memory of another object's, such as a tensor, a map or a ctypes array, and where it lay when it was given.

    Some owners can move or free it all the same. So every call that will use it looks again first.
    """

    label: str
    owner: Any
    place: tuple[int, int]
    bound: bool

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
    """Return the object whose memory an array shows, or None if that is an array."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    return base.obj if isinstance(base, memoryview) else base


def place_of(owner: Any) -> tuple[int, int] | None:
    """Return where an object's memory lies and how many bytes it has, or None if it has none or does not say."""
    try:
        if is_tensor(owner):
            storage = owner.untyped_storage()
            return storage.data_ptr(), storage.nbytes()
        memory = np.frombuffer(owner, np.uint8)
    except Exception:  # of closed maps and released views among others
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


def as_gradient(label: str, value: Any, w: Array, erases: bool) -> Array | _kernel.SummedRows | None:
    """Return one gradient as the plan wants it: an ndarray of no subclass, the rows of the parameter w, or None.

    Where the step `erases` gradients, no copy of what was given will do.
    """
    if value is None:
        return None
    if is_sparse(value):
        if erases:
            raise TypeError(f"{label}: a sparse matrix, expected an array or Rows, because zero_grads sets it to zero")
        value = whole_rows(label, value, w.shape)
    if isinstance(value, Rows):
        return _kernel.SummedRows(label, w, value.indices, np.asarray(as_array(f"{label}.values", value.values)))
    return np.asarray(as_array(label, value))


def as_sequence(label: str, value: Any, expected: str) -> list[Any]:
    """Return the elements of a sequence or iterator as a list, or raise."""
    if isinstance(value, (str, bytes, set, frozenset)) or not isinstance(value, Iterable):
        raise TypeError(f"{label}: {type(value).__name__}, expected {expected}")
    return list(value)


def as_params(params: Any, first: int = 0, alone: bool = False) -> tuple[list[str] | None, list[Array]]:
    """Return the names, if there are any, and the arrays of one group, of which messages call the first by its index.

    An array `alone` is all that the optimizer has, and has no index.
    """
    if isinstance(params, Mapping):
        names = [as_name(name) for name in params]
        return names, [as_array(f"params[{name!r}]", value) for name, value in zip(names, params.values(), strict=True)]
    if is_array(params):
        return None, [as_array("params" if alone else f"params[{first}]", params)]
    arrays = as_sequence("params", params, "an array, a sequence or mapping of arrays, or a sequence of groups")
    return None, [as_array(f"params[{i}]", value) for i, value in enumerate(arrays, first)]


def as_name(name: Any) -> str:
    """Return a parameter's name as a str of no subclass, or raise."""
    if not isinstance(name, str):
        raise TypeError(f"params: a name {name!r:.60}, expected a str")
    return str.__str__(name)


def as_groups(params: Any) -> list[Mapping[str, Any]]:
    """Return params, in any of its forms, as a list of groups."""
    if is_array(params):
        return [{"params": params}]
    members: Any = params
    if not isinstance(params, Mapping):
        members = as_sequence("params", params, "an array, a sequence or mapping of arrays, or a sequence of groups")
    if len(members) == 0:
        raise ValueError("params: empty, expected at least one array")
    if isinstance(params, Mapping) or not any(isinstance(member, Mapping) for member in members):
        return [{"params": members}]
    return list(members)


def in_line(grads: Any, keys: Sequence[Any], named: bool, label: str = "grads") -> list[Any]:
    """Return the gradients of the parameters called `keys`, in their order, from one of the forms of `params`."""
    count = count_of(len(keys), "gradient")
    if isinstance(grads, Mapping):
        if not named:
            raise TypeError(f"{label}: a mapping, expected a sequence of {count}, because the parameters have no names")
        known = set(keys)
        for name in grads:
            if name not in known:
                names = ", ".join(map(repr, keys[:10])) + ", …" * (len(keys) > 10)
                raise ValueError(f"{label}[{name!r}]: no parameter has this name, expected some of {names}")
        return [grads.get(key) for key in keys]
    if len(keys) == 1 and is_gradient(grads):
        return [grads]
    if is_gradient(grads):
        raise TypeError(f"{label}: one array, expected a sequence of {count}")
    line = as_sequence(label, grads, f"a {'mapping' if named else 'sequence'} of {count}")
    if len(line) != len(keys):
        raise ValueError(
            f"{label}: {count_of(len(line), 'gradient')}, expected {len(keys)}: one, or None, for each parameter"
        )
    return line


def in_line_by_group(grads: Sequence[Any], groups: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Return gradients that were given group by group as one for each parameter."""
    line: list[Any] = []
    for i, (entry, group) in enumerate(zip(grads, groups, strict=True)):
        names, size = group.get("param_names"), len(group["params"])
        if isinstance(entry, Mapping) and "params" in entry and "params" not in (names or ()):
            entry = entry["params"]
        if entry is None:
            line += [None] * size
        else:
            keys = range(size) if names is None else names
            line += in_line(entry, keys, names is not None, f"grads (param_groups[{i}])")
    return line


def as_group(
    group: Any, index: int, first: int, alone: bool, defaults: Mapping[str, Any], changed: _kernel.Flag
) -> ParamGroup:
    """Return a group that a user gave as one of ours, with settings from `defaults` where it has none.

    `index` is its own, `first` that of its first parameter; an array `alone` is all that there is.
    """
    label = f"param_groups[{index}]"
    given = dict(group) if isinstance(group, Mapping) else {}  # looked at once: it may answer otherwise next time
    if "params" not in given:
        raise TypeError(f"{label}: {group!r:.60}, expected a mapping with 'params' and settings")
    own = {name: value for name, value in given.items() if name not in ("params", "param_names")}
    settings = {**defaults, **as_settings(own, f"{label}[{{!r:.60}}]")}
    check_together(settings, "" if settings == defaults else f"{label}: ")
    names, arrays = as_params(given["params"], first, alone)
    if names is None and given.get("param_names") is not None:
        names = [as_name(name) for name in as_sequence(f"{label}['param_names']", given["param_names"], "names")]
        if len(names) != len(arrays):
            raise ValueError(f"{label}['param_names']: {count_of(len(names), 'name')}, expected {len(arrays)}")
    return ParamGroup(arrays, names, settings, changed)


def as_line(grads: Any, line: _kernel.Line, erases: bool = False) -> list[Any]:
    """Return the gradients, in any form that is allowed, as the plan wants them.

    That is one for each parameter of the line, or None. See `as_gradient` for `erases`.
    """
    if isinstance(grads, Iterable) and not isinstance(grads, Mapping) and not is_gradient(grads):
        grads = as_sequence("grads", grads, "a sequence of gradients")
        if len(grads) == len(line.groups) and any(isinstance(entry, (list, tuple, Mapping)) for entry in grads):
            grads = in_line_by_group(grads, line.groups)
    return [
        as_gradient(label_of("grads", key, line.single), g, w, erases)
        for key, g, w in zip(line.keys, in_line(grads, line.keys, line.named), line.params, strict=True)
    ]

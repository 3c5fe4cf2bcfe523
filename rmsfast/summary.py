"""An optimizer in a few lines of text: what `repr` shows."""

from rmsfast._core.steps import ArrayFront
from rmsfast.settings import Array, count_of, elements_of

SHOWN = 8  # parameters of a group; all, if there are at most two more


def summary(name: str, front: ArrayFront) -> str:
    """Return an optimizer's parameters, steps, memory and settings. If it has one array, this is one line."""
    plan, entries = front.state()
    memory = as_memory(sum(a.nbytes for _, _, arrays in entries for a in arrays.values()))
    taken = f"{count_of(front.steps, 'step')}, {memory} of state"
    if plan.single:
        w, group = plan.params[0], plan.groups[0]
        return f"{name}({form_of(w)}, {elements_of([w])}, {taken}, {group.listed()})"
    lines, rest = [f"{name}({taken}"], iter(plan.keys)
    for group in plan.groups:
        arrays = group["params"]
        keys = [str(next(rest)) for _ in arrays]
        shown = len(arrays) if len(arrays) <= SHOWN + 2 else SHOWN
        width = max(map(len, keys[:shown]), default=0)
        lines.append(f"    {group!r}")
        lines += [f"        {key:{width}}  {form_of(w)}" for key, w in zip(keys[:shown], arrays[:shown], strict=True)]
        if shown < len(arrays):
            lines.append(f"        … and {len(arrays) - shown} more")
    return "\n".join([*lines, ")"])


def form_of(w: Array) -> str:
    """Return an array's dtype and shape as text."""
    return f"{w.dtype} {w.shape}"


def as_memory(nbytes: float) -> str:
    """Return a number of bytes as text."""
    for unit in "B", "kB", "MB", "GB":
        if nbytes < 1000 or unit == "GB":
            break
        nbytes /= 1000
    return f"{nbytes:.0f} B" if unit == "B" else f"{nbytes:.1f} {unit}"

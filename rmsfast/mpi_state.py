"""The state of an optimizer that is divided among ranks: gathered to whole arrays, and divided again."""

import json
from collections.abc import Mapping, Sequence, Set
from types import SimpleNamespace
from typing import Any

import numpy as np
from mpi4py import MPI

from rmsfast._core.arrays import ArrayPlan
from rmsfast._core.formats import SCALED, exact
from rmsfast._core.steps import Flag
from rmsfast.mpi_bucket import Lane
from rmsfast.mpi_engine import Engine
from rmsfast.mpi_layout import Stretch, flat
from rmsfast.optimizer import RMSProp
from rmsfast.schedules import as_plain, from_plain
from rmsfast.settings import SCHEDULED, Array, as_settings, is_own
from rmsfast.state import as_state_dict


def whole_state(engine: Engine, plan: ArrayPlan, steps: int, root: int | None) -> dict[str, Any] | None:
    """Return the state and the settings as `RMSProp.state_dict` does: on the rank `root`, or for None on all."""
    arrays = gather(engine, root)
    if arrays is None:
        return None
    entries = list(zip(plan.keys, engine.counts.tolist(), arrays, strict=True))
    settings = [group.settings() for group in plan.groups]
    taken: Any = SimpleNamespace(plan=plan, entries=entries, settings=settings, steps=steps)
    return as_state_dict(taken)


def extent(stretch: Stretch, name: str) -> slice:
    """Return which elements of a state array belong to a stretch. A scale belongs to 64 of the parameter's."""
    if name.endswith("_scale"):
        return slice(stretch.start // SCALED, -(-stretch.stop // SCALED))
    return slice(stretch.start, stretch.stop)


def length_of(part: Sequence[Stretch], name: str) -> int:
    """Return how many elements of a state array belong to a part."""
    return sum(inside.stop - inside.start for inside in (extent(stretch, name) for stretch in part))


def kinds_of(engine: Engine, lane: Lane) -> list[tuple[str, np.dtype[Any], list[list[Stretch]]]]:
    """Return of each kind of state array in a bucket its name, its dtype, and where parameters have one, by rank."""
    dtypes = {name: dtype for s in lane.bucket.stretches for name, (dtype, _) in engine.forms[s.parameter].items()}
    return [
        (name, dtype, [[s for s in part if name in engine.forms[s.parameter]] for part in lane.bucket.parts])
        for name, dtype in dtypes.items()
    ]


def gather(engine: Engine, root: int | None) -> list[dict[str, Array]] | None:
    """Return the whole state arrays of each parameter, on the rank `root`, or for None on all; elsewhere None."""
    comm, forms = engine.comm, engine.forms
    is_here = root is None or comm.rank == root
    whole: list[dict[str, Array]] = [
        {name: np.zeros(shape, dtype, "C" if w.flags.c_contiguous else "F") for name, (dtype, shape) in of_w.items()}
        for w, of_w in zip(engine.arrays if is_here else (), forms if is_here else (), strict=True)
    ]
    for lane in engine.lanes:
        state = {} if lane.optimizer is None else lane.optimizer.state_dict()["state"]
        for name, dtype, parts in kinds_of(engine, lane):
            own = np.zeros(length_of(parts[comm.rank], name), dtype)
            place = 0
            for piece, view, entry in zip(lane.pieces, lane.views, state.values(), strict=True):
                if name not in forms[piece.stretch.parameter]:
                    continue
                length = length_of([piece.stretch], name)
                if name in entry:
                    own[place : place + length] = flat(entry[name])
                elif name == "ema":  # the setting is newer than the state: an average begins as its parameter is, …
                    own[place : place + length] = flat(exact(view, entry.get("remainder"), entry.get("master")))
                place += length  # … and all else with zeros
            counts = [length_of(part, name) * dtype.itemsize for part in parts]
            found = np.zeros(sum(counts) if is_here else 0, np.uint8)
            into = [found, counts, None, MPI.BYTE] if is_here else None
            if root is None:
                comm.Allgatherv([own.view(np.uint8), MPI.BYTE], into)
            else:
                comm.Gatherv([own.view(np.uint8), MPI.BYTE], into, root)
            place = 0
            for stretch in (s for part in parts for s in part if is_here):
                target = flat(whole[stretch.parameter][name])[extent(stretch, name)].view(np.uint8)
                target[:] = found[place : place + len(target)]
                place += len(target)
    return whole if is_here else None


def scatter(engine: Engine, whole: Sequence[Mapping[str, Array]], unmoved: Set[int]) -> None:
    """Let each rank take over its part of the state that rank 0 has. The engine has forms and counts already.

    The averages of the parameters `unmoved` begin anew, with what these parameters are at their next step.
    """
    comm, forms = engine.comm, engine.forms
    for lane in engine.lanes:
        states: list[dict[str, Array]] = [{} for _ in lane.views]
        for name, dtype, parts in kinds_of(engine, lane):
            own = np.zeros(length_of(parts[comm.rank], name), dtype)
            given = None
            if comm.rank == 0:
                stretches = [s for part in parts for s in part]
                pieces = [flat(whole[s.parameter][name])[extent(s, name)].view(np.uint8) for s in stretches]
                counts = [length_of(part, name) * dtype.itemsize for part in parts]
                given = [np.concatenate(pieces), counts, None, MPI.BYTE]
            comm.Scatterv(given, [own.view(np.uint8), MPI.BYTE])
            place = 0
            for piece, arrays in zip(lane.pieces, states, strict=True):
                if name not in forms[piece.stretch.parameter]:
                    continue
                length = length_of([piece.stretch], name)
                if name != "ema" or piece.stretch.parameter not in unmoved:
                    arrays[name] = own[place : place + length].reshape(-1 if name.endswith("_scale") else piece.shape)
                place += length
        if lane.optimizer is not None:
            front, steps = lane.optimizer._front, engine.counts.tolist()
            front.restore(front.plan, [steps[piece.stretch.parameter] for piece in lane.pieces], states, [], None)


def whole_optimizer(plan: ArrayPlan, arrays: Sequence[Array]) -> RMSProp:
    """Return an optimizer of one process on copies of the parameters, to load into."""
    copies = iter([w.copy(order="K") for w in arrays])
    if plan.single:
        return RMSProp(next(copies), **plan.groups[0].settings())
    return RMSProp([{**group, "params": [next(copies) for _ in group["params"]]} for group in plan.groups])


def divide_state(
    engine: Engine, plan: ArrayPlan, loaded: RMSProp | None, extra: Any, changed: Flag | None
) -> dict[str, Any]:
    """Give each rank its part of what rank 0 has loaded, but for the parameters.

    The settings are taken over as well if there is a flag, which is raised. Returns, on all ranks, a dict with
    ``steps`` and ``skipped``, the counts, and ``extra``.
    """
    header, arrays = None, []
    if loaded is not None:
        arrays = [loaded.state[key] for key in plan.keys]
        forms = [{name: [str(a.dtype), a.shape] for name, a in entry.items() if name != "step"} for entry in arrays]
        settings = [
            {name: value for name, value in group.settings().items() if not is_own(value)}
            for group in loaded.param_groups
        ]
        header = {
            "counts": [entry["step"] for entry in arrays],
            "steps": loaded.steps,
            "skipped": loaded.skipped_steps,
            "forms": forms,
            "unmoved": sorted(loaded._front.plan.fresh),
            "settings": settings,
            "extra": extra,
        }
    told: dict[str, Any] = broadcast_json(engine.comm, header)
    engine.forms = [
        {name: (np.dtype(dtype), tuple(shape)) for name, (dtype, shape) in of_w.items()} for of_w in told["forms"]
    ]
    engine.counts[:] = told["counts"]
    for group, plain in zip(plan.groups, told["settings"], strict=True):
        values = {name: from_plain(name, value) if name in SCHEDULED else value for name, value in plain.items()}
        if changed is not None:
            changed.put([group.held()], as_settings(values))
    scatter(engine, arrays, set(told["unmoved"]))
    return told


def broadcast_json(comm: MPI.Intracomm, value: Any) -> Any:
    """Return what rank 0 gave, on all ranks."""
    text = np.frombuffer(json.dumps(value, default=as_plain).encode(), np.uint8).copy()
    length = np.array([len(text)], np.int64)
    comm.Bcast(length)
    if comm.rank != 0:
        text = np.zeros(int(length[0]), np.uint8)
    comm.Bcast(text)
    return json.loads(text.tobytes())

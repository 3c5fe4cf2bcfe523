"""`ShardedRMSProp`: RMSProp for data-parallel training on MPI, its state divided among the ranks.

Needs mpi4py and an MPI: ``pip install mpi4py mpich`` installs both. On a cluster, mpi4py built against the system's MPI
serves. docs/distributed.md says what a step moves and how long that takes.
"""

import inspect
import os
from collections.abc import Callable, Mapping
from hashlib import blake2b
from os import PathLike
from typing import Any

import numpy as np

try:
    from mpi4py import MPI
except ImportError as _missing:
    raise ImportError(
        f"rmsfast.mpi: mpi4py cannot be imported ({_missing}), expected mpi4py and an MPI: "
        "pip install mpi4py mpich installs both"
    ) from _missing

from rmsfast._core import steps
from rmsfast._core.formats import SCALED
from rmsfast._core.rows import SummedRows
from rmsfast._core.threads import get_num_threads
from rmsfast.arguments import as_group, as_groups, as_line, as_loans, is_array, label_of
from rmsfast.attributes import Rate, Settings
from rmsfast.mpi_agreement import Agreement, Facts
from rmsfast.mpi_engine import Engine
from rmsfast.mpi_layout import flat, row_of, takes_rows
from rmsfast.mpi_state import divide_state, whole_optimizer, whole_state
from rmsfast.optimizer import RMSProp
from rmsfast.settings import (
    GRAD_SCALE,
    SETTINGS,
    SWITCH,
    Array,
    ParamGroup,
    as_settings,
    count_of,
    elements_of,
    is_own,
    no_such_setting,
    number_at,
    read_settings,
)
from rmsfast.summary import as_memory
from rmsfast.threads import usable_cores

__all__ = ["ShardedRMSProp"]

FEWEST_BYTES, MOST_BYTES = 1 << 12, 1 << 30  # of a bucket; MPI counts with 32 bits
BYTES_A_RANK = 4 << 20  # of a bucket by default: measured, where two ranks share memory


class ShardedRMSProp(Settings):
    """RMSProp for several processes that each have gradients of the same parameters, on MPI.

    A step averages the gradients of all ranks and leaves the same parameters on each. Every rank keeps the state of its
    own part of the elements alone, 1/N of it, and updates only these: the first stage of ZeRO [1]_. `rmsfast.RMSProp`
    computes the same from the mean of the gradients: the same bits with 1 and 2 ranks. With more, the order in which
    MPI adds the gradients up makes a difference in the last places.

    All ranks make the same calls, in the same order, with the same settings. Where one rank's arguments are refused,
    all ranks raise the same error, and nothing has changed on any.

    Parameters
    ----------
    params : array, sequence, mapping or tree of arrays, or sequence of groups
        As for `rmsfast.RMSProp`: this rank's copy of the parameters. At the start, rank 0's are copied to all.
    lr, beta, eps : float
        As for `rmsfast.RMSProp`. `lr` and `beta` may be callables.
    comm : mpi4py.MPI.Intracomm, optional
        The ranks. The default is ``MPI.COMM_WORLD``. While a call of the optimizer runs, no other thread may use it.
    average : bool, default True
        Divide the sum of the gradients by the number of ranks. False takes the sum.
    bucket_bytes : int, optional
        How many bytes of gradients are reduced at a time, from 4096 to 2**30. While one bucket is reduced, the one
        before is gathered. The default is 4 MiB for each rank, so that what each rank sends to each other one stays as
        large when there are more ranks.
    num_threads : int, optional
        As for `rmsfast.RMSProp`. By default the ranks on one machine share its cores, unless ``OMP_NUM_THREADS`` or
        `rmsfast.set_num_threads` says how many threads each uses.
    **settings
        All other settings of `rmsfast.RMSProp`, under the same names. Norms and `nonfinite` are those of the averaged
        gradients, and lead to the same decision on every rank.

    Raises
    ------
    TypeError, ValueError
        As `rmsfast.RMSProp`, on all ranks; or if the ranks differ in names, shapes, dtypes or settings.

    Notes
    -----
    ``mpiexec -n 4 python -m mpi4py train.py`` ends all ranks when one of them raises an error that it does not catch.
    Without ``-m mpi4py``, the others would wait for it.

    The gradients of float16 and bfloat16 parameters are added up in float32. All ranks must give a gradient in the same
    form: an array, `Rows`, or None. `Rows` are gathered, not made dense.

    An optimizer cannot be pickled or copied, and takes no more groups once it is made.

    References
    ----------
    .. [1] S. Rajbhandari, J. Rasley, O. Ruwase and Y. He, "ZeRO: Memory Optimizations Toward Training Trillion
       Parameter Models", arXiv:1910.02054, 2020.

    Examples
    --------
    >>> import numpy as np
    >>> from rmsfast.mpi import ShardedRMSProp
    >>> w = np.ones(4)
    >>> opt = ShardedRMSProp(w, lr=0.1)     # on every rank
    >>> opt.step(2 * w)                     # with this rank's gradient
    """

    def __init__(
        self,
        params: Any,
        lr: Rate = 1e-3,
        beta: Rate = 0.9,
        eps: float = 1e-8,
        *,
        comm: MPI.Intracomm | None = None,
        average: bool = True,
        bucket_bytes: int | None = None,
        num_threads: int | None = None,
        **settings: Any,
    ) -> None:
        self._comm = MPI.COMM_WORLD if comm is None else comm
        if not isinstance(self._comm, MPI.Intracomm) or self._comm == MPI.COMM_NULL:
            raise TypeError(f"comm: {comm!r:.60}, expected an mpi4py.MPI.Intracomm, as MPI.COMM_WORLD")
        self._agreement = Agreement(self._comm)
        self._changed = steps.Flag()
        self._steps, self._skipped, self._is_cut_off = 0, 0, False
        size = 0

        def prepare() -> Facts:
            nonlocal size
            self._average = SWITCH.read(average, "average")
            size = as_bucket_bytes(bucket_bytes, self._comm.size)
            for name in settings:
                if name not in SETTINGS:
                    raise TypeError(no_such_setting(name, name))
            self._front = steps.ArrayFront(self._changed, read_settings, num_threads, None, stateless=True)
            self._take_params(params, {"lr": lr, "beta": beta, "eps": eps, **settings})
            self._refresh()
            return {
                "average": repr(self._average),
                "bucket_bytes": repr(size),
                **self._form(),
                **self._told(self._values),
            }

        self._together(type(self).__name__, prepare)
        self.sync()  # first, because some state begins as the parameters do
        share = fair_threads(self._comm)  # asks all ranks, so also those where `num_threads` is given
        threads = share if num_threads is None else num_threads
        labels = [label_of("grads", key, self._plan.single) for key in self._plan.keys]

        def divide() -> Facts:
            self._engine = Engine(self._comm, self._arrays, labels, self._plan.groups, size, threads)
            self._engine.make_room(self._values)
            self._engine.take_settings(self._values)
            return {}

        self._together(type(self).__name__, divide)

    def _take_params(self, params: Any, given: dict[str, Any]) -> None:
        """Check the parameters and settings as `RMSProp` would, and make a plan of them, which keeps no state."""
        defaults = {**{name: setting.default for name, setting in SETTINGS.items()}, **as_settings(given)}
        single = is_array(params)
        groups: list[ParamGroup] = []
        for i, group in enumerate(as_groups(params)):
            first = sum(len(g["params"]) for g in groups)
            groups.append(as_group(group, i, first, single, defaults, self._changed))
        self._front.add_groups(groups, single)
        self._plan = plan = self._front.plan
        self._front.loans = as_loans("params", plan.keys, plan.params, plan.single)
        self._arrays: list[Array] = [np.asarray(w) for w in plan.params]

    # ---- All ranks together ----

    def _together(self, call: str, prepare: Callable[[], Facts]) -> None:
        """Prepare on all ranks, or raise on all if one cannot or if they differ in what `prepare` returns."""
        facts: Facts = {}
        error = None
        try:
            self._check_whole(call)
            facts = prepare()
        except Exception as caught:
            error = caught
        self._agreement.reach(call, repr(facts).encode(), lambda: facts, error)

    def _check_whole(self, call: str) -> None:
        """Refuse to go on where a step was cut off."""
        if self._is_cut_off:
            raise RuntimeError(
                f"{call}: a call before was cut off, so the ranks may differ, expected a new optimizer, which loads "
                "the last file"
            )

    def _form(self) -> dict[str, str]:
        """Return what the parameters are, in words, by label."""
        plan = self._plan
        form = {"params": repr(list(plan.keys)), "param_groups": repr([len(group["params"]) for group in plan.groups])}
        for key, w in zip(plan.keys, self._arrays, strict=True):
            order = "C" if w.flags.c_contiguous else "Fortran"
            form[label_of("params", key, plan.single)] = f"{w.dtype} of shape {w.shape} in {order} order"
        return form

    def _told(self, settings: list[dict[str, Any]]) -> dict[str, str]:
        """Return the settings of each group and the count of steps, in words, by label."""
        told = {
            f"param_groups[{i}][{name!r}]": "a function of your own" if is_own(value) else repr(value)
            for i, values in enumerate(settings)
            for name, value in values.items()
        }
        return {**told, "steps": repr(self._steps)}

    def _refresh(self) -> None:
        """Read the settings of all groups, with a number in the place of a schedule."""
        self._changed.up = False
        try:
            self._scheduled, self._values = read_settings(self._plan.groups, self._steps)
        except BaseException:
            self._changed.up = True
            raise
        self._settings_text = repr(self._values).encode()

    # ---- A step ----

    def step(self, grads: Any, *, grad_scale: float = 1.0, zero_grads: bool = False) -> None:
        """Update every parameter by the average of its gradients on all ranks, in place, on every rank.

        Parameters
        ----------
        grads : array, sequence, mapping or tree of arrays
            This rank's gradients, in any form that `rmsfast.RMSProp.step` takes.
        grad_scale : float, default 1
            The average is multiplied by this: finite, ≥ 0, the same on all ranks.
        zero_grads : bool, default False
            Set this rank's gradients to zero after the step, also when it is skipped.

        Raises
        ------
        TypeError, ValueError
            As `rmsfast.RMSProp.step` on any rank; or if the ranks differ in settings, in `grad_scale`, or in which
            parameters have gradients. All ranks raise the same error, and nothing has changed on any.
        FloatingPointError
            If the averaged gradients have infinite or NaN elements and `nonfinite` is "raise".
        RuntimeError
            If the ranks called different methods, or if a call before was cut off, as by Ctrl-C.

        Notes
        -----
        A step allocates no memory in proportion to the parameters, where gradients have their parameters' memory order
        and are not `Rows`; but for the first step after norms or `nonfinite` are asked for.
        """
        line: list[Any] = []
        scale, erases, error = 1.0, False, None
        try:
            self._check_whole("step")
            scale, erases = GRAD_SCALE.read(grad_scale, "grad_scale"), SWITCH.read(zero_grads, "zero_grads")
            if grads is None:
                raise TypeError("grads: None, expected gradients: opt.step(grads)")
            line = self._line_of(grads, erases)
            self._check(line, erases)
            if self._changed.up or self._scheduled:
                self._refresh()
            self._engine.make_room(self._values)
        except Exception as caught:
            error = caught
        forms = bytes(0 if g is None else 2 if isinstance(g, SummedRows) else 1 for g in line)
        content = b"%s%r%d%b%d" % (self._settings_text, scale, erases, forms, self._steps)
        self._agreement.reach("step", content, lambda: self._told_of_step(line, scale, erases), error)
        self._is_cut_off = True  # until the end: after an error from here on, MPI may still be at work
        self._line = line  # so that nobody frees what MPI reads then
        self._engine.take_settings(self._values)
        with np.errstate(all="ignore"):
            taken, fault = self._engine.run(line, scale / self._comm.size if self._average else scale)
        self._is_cut_off, self._line = False, []
        self._steps += taken
        self._skipped += not taken and fault is None
        if fault is not None:
            raise fault
        if erases:
            for g in line:
                if g is not None:
                    (g.given if isinstance(g, SummedRows) else g)[...] = 0

    def _line_of(self, grads: Any, erases: bool) -> list[Any]:
        """Return one gradient, `SummedRows` or None for each parameter. The usual forms take the short way."""
        keys = self._plan.keys
        line: list[Any] = []
        if type(grads) is dict and self._plan.named and len(grads) == len(keys):
            line = [grads.get(key) for key in keys]
        elif type(grads) in (list, tuple) and len(grads) == len(keys):
            line = list(grads)
        if line and all(type(g) is np.ndarray for g in line):
            return line
        return as_line(grads, self._plan, erases)

    def _check(self, line: list[Any], erases: bool) -> None:
        """Refuse gradients that a step would refuse."""
        if not self._front.check(line, erases):
            raise TypeError("grads: objects of another type, expected NumPy arrays")
        for label, g, w, group in zip(self._engine.labels, line, self._arrays, self._engine.group_of, strict=True):
            in_8_bits = self._plan.groups[group]["state_dtype"] == "uint8"
            if isinstance(g, SummedRows) and in_8_bits and not takes_rows(w, True):
                raise ValueError(
                    f"{label}: rows of {row_of(w)} elements with state_dtype='uint8', expected rows of a multiple of "
                    f"{SCALED} elements, in C order, because parts of rows would share a scale: use 'bfloat16' or None"
                )

    def _told_of_step(self, line: list[Any], scale: float, erases: bool) -> Facts:
        """Return what this rank was about to do, in words, by label."""
        told = {"grad_scale": repr(scale), "zero_grads": repr(erases), **self._told(self._values)}
        for label, g in zip(self._engine.labels, line, strict=True):
            told[label] = "None" if g is None else "rows" if isinstance(g, SummedRows) else "an array"
        return told

    # ---- The same parameters everywhere ----

    def sync(self) -> None:
        """Copy rank 0's parameters to all ranks, as it is done at the start."""
        self._together("sync", self._checked)
        self._copy_from_rank_0()

    def _copy_from_rank_0(self) -> None:
        for w in self._arrays:
            numbers = flat(w).view(np.uint8)
            for start in range(0, len(numbers), MOST_BYTES):
                self._comm.Bcast([numbers[start : start + MOST_BYTES], MPI.BYTE])

    def check_synced(self) -> None:
        """Raise on all ranks if the parameters are not the same on all, by their digests.

        Raises
        ------
        ValueError
            For the first parameter that differs from rank 0's, with the ranks where it does.
        """

        def prepare() -> Facts:
            facts = self._checked()
            for key, w in zip(self._plan.keys, self._arrays, strict=True):
                digest = blake2b(flat(w).view(np.uint8).data, digest_size=16).hexdigest()
                facts[label_of("params", key, self._plan.single)] = f"numbers with the digest {digest}"
            return facts

        self._together("check_synced", prepare)

    def _checked(self) -> dict[str, str]:
        """Refuse parameters that were moved, and return what this rank has, in words. No schedule is asked."""
        self._front.check([None] * len(self._arrays), False)
        return self._told([group.settings() for group in self._plan.groups])

    # ---- State and checkpoints ----

    def state_dict(self, root: int | None = None) -> dict[str, Any] | None:
        """Return the whole state and the settings, in PyTorch's layout, as `rmsfast.RMSProp.state_dict`.

        Parameters
        ----------
        root : int, optional
            The only rank that gets it. By default all do, and each needs the memory for the whole state.

        Returns
        -------
        dict or None
            None on the ranks other than `root`.
        """

        def prepare() -> Facts:
            if root is not None and (type(root) is not int or not 0 <= root < self._comm.size):
                raise ValueError(f"root: {root!r:.60}, expected a rank from 0 to {self._comm.size - 1}, or None")
            return {"root": repr(root), **self._checked()}

        self._together("state_dict", prepare)
        return whole_state(self._engine, self._plan, self._steps, root)

    def load_state_dict(self, state_dict: Mapping[str, Any] | None, *, settings: bool = True) -> None:
        """Continue from what `state_dict` returned, here or of `rmsfast.RMSProp`. If it raises, nothing changes.

        Parameters
        ----------
        state_dict : mapping
            Rank 0's counts. Other ranks may give None.
        settings : bool, default True
            As for `rmsfast.RMSProp.load`.

        Raises
        ------
        TypeError, ValueError
            As `rmsfast.RMSProp.load_state_dict`, on all ranks.
        """

        def load(whole: RMSProp, with_settings: bool) -> None:
            whole.load_state_dict(state_dict, settings=with_settings)  # type: ignore[arg-type]

        self._restore("load_state_dict", load, settings)

    def save(self, path: str | PathLike[str], extra: Any = None) -> None:
        """Write the parameters, the whole state and the settings to one file. Rank 0 writes it.

        Parameters
        ----------
        path, extra
            As for `rmsfast.RMSProp.save`. Rank 0's count. Any number of ranks can load the file, and so can
            `rmsfast.RMSProp`.

        Raises
        ------
        OSError, TypeError, ValueError
            As `rmsfast.RMSProp.save`, on all ranks.

        Notes
        -----
        Rank 0 needs the memory for the whole state while it writes.
        """
        from rmsfast import checkpoint

        added = None

        def prepare() -> Facts:
            nonlocal added
            if self._comm.rank == 0:
                added = checkpoint.as_json("extra", extra)
            return self._checked()

        def write() -> Facts:
            if whole is not None:
                checkpoint.write(path, whole, self._arrays, self._skipped, added)
            return {}

        self._together("save", prepare)
        whole = whole_state(self._engine, self._plan, self._steps, 0)
        self._together("save", write)

    def load(self, path: str | PathLike[str], *, settings: bool = True) -> Any:
        """Continue from a file, whoever saved it: any number of ranks, or `rmsfast.RMSProp`. Rank 0 reads it.

        Parameters
        ----------
        path, settings
            As for `rmsfast.RMSProp.load`. Rank 0's path counts. If it raises, nothing changes on any rank.

        Returns
        -------
        object
            The `extra` of `save`, on all ranks.

        Raises
        ------
        OSError, TypeError, ValueError
            As `rmsfast.RMSProp.load`, on all ranks.

        Notes
        -----
        Rank 0 needs the memory for the whole state and a copy of the parameters while it reads.
        """
        return self._restore("load", lambda whole, given: whole.load(path, settings=given), settings)

    def _restore(self, call: str, load: Callable[[RMSProp, bool], Any], settings: Any) -> Any:
        """Let rank 0 load into an optimizer of one process, which checks everything. Then divide what that has.

        No schedule is asked: that of one rank might raise, and the next step asks it anyway.
        """
        whole: RMSProp | None = None
        extra, with_settings = None, True

        def prepare() -> Facts:
            nonlocal whole, extra, with_settings
            with_settings = SWITCH.read(settings, "settings")
            facts = {"settings": repr(with_settings), **self._checked()}
            if self._comm.rank == 0:
                whole = whole_optimizer(self._plan, self._arrays)
                extra = load(whole, with_settings)
            return facts

        self._together(call, prepare)
        self._is_cut_off = True
        told = divide_state(self._engine, self._plan, whole, extra, self._changed if with_settings else None)
        self._steps = told["steps"]
        self._skipped = told["skipped"] if call == "load" else self._skipped
        if whole is not None and call == "load":
            for w, new in zip(self._arrays, whole._front.plan.params, strict=True):
                w[...] = new
        self._copy_from_rank_0()
        self._is_cut_off = False
        return told["extra"]

    # ---- What it is ----

    @property
    def param_groups(self) -> tuple[ParamGroup, ...]:
        """The parameter groups: ``opt.param_groups[0]["lr"] = 0.01``, on every rank, changes a setting."""
        return tuple(self._plan.groups)

    @property
    def current_lr(self) -> float:
        """The learning rate of the next step as a number. A schedule is asked for it."""
        return number_at("lr", self.lr, self._steps)  # type: ignore[no-any-return]

    @property
    def steps(self) -> int:
        """How many steps were taken, whichever parameters had gradients. Skipped steps do not count."""
        return self._steps

    @property
    def skipped_steps(self) -> int:
        """How many steps were skipped because of nonfinite gradients (see `nonfinite`)."""
        return self._skipped

    @property
    def comm(self) -> MPI.Intracomm:
        """The ranks."""
        return self._comm

    @property
    def state_bytes(self) -> int:
        """The bytes of state that this rank keeps: about 1/N of all."""
        return self._engine.state_bytes

    @property
    def sent_bytes(self) -> int:
        """The bytes that a rank has to send in a step with dense gradients: (N − 1)/N of all gradients and parameters.

        That is what the best algorithms for a reduction and a gathering send. MPI may choose another one.
        """
        return self._engine.sent_bytes

    def __repr__(self) -> str:
        arrays = self._arrays
        groups = "; ".join(group.listed() for group in self._plan.groups)
        return (
            f"{type(self).__name__}(rank {self._comm.rank} of {self._comm.size}, {count_of(len(arrays), 'array')}, "
            f"{elements_of(arrays)}, {count_of(self._steps, 'step')}, {as_memory(self.state_bytes)} of state here, "
            f"{groups})"
        )

    def __reduce__(self) -> Any:
        raise TypeError(
            f"{type(self).__name__}: cannot be copied or pickled, expected save or state_dict, because its state lies "
            "on several ranks"
        )


def as_bucket_bytes(value: Any, ranks: int) -> int:
    """Return the size of a bucket, or raise."""
    expected = f"an integer from {FEWEST_BYTES} to {MOST_BYTES}, or None"
    if value is None:
        return min(BYTES_A_RANK * ranks, MOST_BYTES)
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"bucket_bytes: {value!r:.60}, expected {expected}")
    if not FEWEST_BYTES <= value <= MOST_BYTES:
        raise ValueError(f"bucket_bytes: {value!r:.60}, expected {expected}")
    return int(value)


def fair_threads(comm: MPI.Intracomm) -> int | None:
    """Return this rank's share of the cores that it may use, or None if the user has said how many threads to use."""
    cores = usable_cores()
    places = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(cores))
    users = np.zeros(1 << 14, np.int32)  # of each core: the ranks that may use it
    places = [place for place in places if place < len(users)]
    users[places] = 1
    machine = comm.Split_type(MPI.COMM_TYPE_SHARED)
    machine.Allreduce(MPI.IN_PLACE, users)
    machine.Free()
    if "OMP_NUM_THREADS" in os.environ or get_num_threads() != cores:
        return None
    return max(1, int(cores / users[places].mean()))


def full_signature() -> inspect.Signature:
    """Return the signature with all settings of `RMSProp`, as `help` shows it."""
    own = inspect.signature(ShardedRMSProp.__init__).parameters
    plain = list(inspect.signature(RMSProp.__init__).parameters.values())[1:]
    settings = [p for p in plain if p.name in SETTINGS or p.kind is not p.KEYWORD_ONLY]
    return inspect.Signature(
        [*settings, *(own[name] for name in own if own[name].kind is inspect.Parameter.KEYWORD_ONLY)]
    )


ShardedRMSProp.__signature__ = full_signature()  # type: ignore[attr-defined]

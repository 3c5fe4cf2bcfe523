"""`RMSProp`, the object that a user holds, and `rmsprop_update`, one step on one array.

A step goes from `RMSProp.step` straight to the plan in the kernel, which checks the gradients and runs. The rest
of this file runs when an optimizer is made, changed, saved or restored.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from os import PathLike
from types import MappingProxyType
from typing import Any

from rmsfast._core import steps
from rmsfast._core.arrays import update as update_one
from rmsfast._core.rows import SummedRows
from rmsfast.arguments import Loan, as_array, as_group, as_groups, as_line, as_loans, is_array, label_of
from rmsfast.attributes import Rate, Settings, with_our_names
from rmsfast.settings import GRAD_SCALE, SWITCH, ParamGroup, as_settings, number_at, read_settings
from rmsfast.settings import SETTINGS as SETTINGS  # this and the next also for rmsfast.torch
from rmsfast.settings import check_together as check_together
from rmsfast.state import as_count, as_like, as_restored, as_state_dict
from rmsfast.summary import summary


class RMSProp(Settings):
    """RMSProp on arrays in CPU memory, updated in place: the plain rule, and the variants of every framework.

    For each parameter w with gradient g, and the running average v of its squared gradient, which starts at 0::

        v ← beta·v + (1 − beta)·g²
        w ← w − lr·g / (√v + eps)

    The keywords after `eps` change this rule; `rmsfast.dialects` has them as each framework combines them. The result
    has the same bits as `rmsfast.reference.RMSProp`, for any number of threads and on every CPU.

    Parameters
    ----------
    params : array, sequence, mapping or tree of arrays, or sequence of groups
        The arrays to train: float32, float64, complex64, complex128, float16 or bfloat16 (of `ml_dtypes`), C- or
        F-contiguous, aligned, writable, of any shape, none sharing memory with another. Those of 16 bits are updated in
        float32 and rounded. A complex array is trained as its real and imaginary parts, side by
        side. An object that shares its memory by the buffer protocol, PyTorch's tensors, or, from NumPy 2.2 on, DLPack
        is taken as an array; its memory cannot be resized from then on, and a step refuses it if it was moved. A
        mapping gives names. In a tree of lists, tuples and mappings, such as ``[(W, b), …]`` or ``{"layers": [{"W": W,
        "b": b}, …]}``, the names are paths, such as ``layers.0.W``. A group is a mapping with ``"params"`` and with its
        own settings for some of the keywords below, except `num_threads`.
    lr : float or callable, default 1e-3
        The learning rate η ≥ 0. A callable is given the number of steps taken so far (0 at the first step) and returns
        the rate. It is called once per step, while the optimizer is locked: it must not use the optimizer.
        `rmsfast.schedules` has the usual ones. As every setting, a number in an array is read once: a later change of
        the array has no effect.
    beta : float or callable, default 0.9
        The decay of the average, from 0 to 1. PyTorch calls it alpha, Keras rho. A callable, as for `lr`.
    eps : float, default 1e-8
        Added to the root, ≥ 0.
    momentum : float, default 0
        μ ≥ 0. If it is not 0, w moves by a buffer b, which starts at 0: b ← μ·b + g/(√v + eps), w ← w − lr·b.
    nesterov : bool, default False
        Look ahead: w moves by g/(√v + eps) + μ·b, with the new b.
    centered : bool, default False
        Divide by the standard deviation: keep the average m ← beta·m + (1 − beta)·g as well, and use v − m² instead
        of v, or 0 where rounding makes that negative.
    weight_decay : float, default 0
        λ ≥ 0: λ·w is added to the gradient, after clipping.
    decoupled_weight_decay : bool, default False
        Subtract lr·λ·w from w before the step instead. The gradient stays as it is.
    eps_inside_sqrt : bool, default False
        Divide by √(v + eps). With an eps of 1e-3 to 1, as in reinforcement learning, training differs visibly.
    lr_in_momentum : bool, default False
        b ← μ·b + lr·g/(√v + eps), w ← w − b: a change of the rate then affects future gradients only.
    bias_correction : bool, default False
        Use v/(1 − betaᵗ) instead of v, and m/(1 − betaᵗ) instead of m, where t counts the parameter's steps, this one
        included. beta must be < 1.
    initial_square_avg : float, default 0
        Where v starts, ≥ 0. It cannot change once the group is made. From 1, as in TensorFlow 1, the first steps are
        small.
    maximize : bool, default False
        Ascend: change the sign of the gradient, after clipping and before weight decay.
    clip_value, clip_norm, clip_global_norm : float, optional
        Limit each element of the gradient to this size; or the norm of each parameter's gradient; or the norm of all of
        this optimizer's gradients together. > 0, and one of the three at most. Infinity means None. Norms are those
        of the gradients after `grad_scale`.
    clip_weights : float, optional
        Limit each element of the parameters to this size, > 0, after the update, as a Wasserstein GAN asks for. NaN
        stays NaN. A float16 or bfloat16 parameter is limited before it is rounded. Infinity means None.
    nonfinite : {"propagate", "raise", "skip"}, default "propagate"
        What to do when a gradient has infinite or NaN elements: compute with them; raise FloatingPointError; or skip
        the step for all parameters, and count it in `skipped_steps`. A step that is skipped or raises changes nothing
        else.
    ema_decay : float, optional
        Keep an average a of each parameter in ``state[…]["ema"]``. It is the parameter until its first step. After each
        update, a ← d·a + (1 − d)·w. d is from 0 to 1; 0.999 averages over the last thousand steps or so. `averages`
        puts the averages in the place of the parameters, to evaluate or to export them. For float16 and bfloat16
        parameters they are float32, and of the numbers before these are rounded.
    state_dtype : {None, "bfloat16", "uint8"}, default None
        Store the state in fewer bytes: 2 or 1 in the place of 4 for each number; with "uint8", each block of 64 numbers
        has one byte more for its scale. For float32, float16 and bfloat16 parameters. It cannot change once the group
        is made.
    master_weights : bool, default False
        Keep the exact float32 master of each float16 or bfloat16 parameter: in 16 more bits for bfloat16 (`remainder`),
        in a float32 array for float16 (`master`). The parameter is the master, rounded. It cannot change once the group
        is made.
    rounding : {"nearest", "stochastic"}, default "nearest"
        How a float16 or bfloat16 parameter without a master is rounded in each step. "stochastic" rounds up with the
        probability of the part cut off, so that steps smaller than half of a unit in the last place are not lost.
    seed : int, default 0
        The random bits of stochastic rounding are a function of the seed, the parameter's index, its step and the
        element alone. State of 16 or 8 bits is always rounded so.
    num_threads : int, optional
        The most threads that a step may use. It uses no more than this process has cores (`set_num_threads` says when
        they are counted). The default is what `get_num_threads` returns.

    Raises
    ------
    TypeError
        If an argument or an array has a wrong type or dtype.
    ValueError
        If a shape, a memory layout or a setting is not allowed, settings contradict each other, or parameters share
        memory.

    Notes
    -----
    The order of operations, with everything switched on, is that of `rmsfast.reference.step`.

    When several threads call one optimizer, one waits for the other. Pickling and `copy.deepcopy` include the
    parameters, as NumPy arrays, and all values are of one moment. If a model with the same arrays is copied in the same
    call, the two copies share their arrays.

    References
    ----------
    T. Tieleman and G. Hinton, "Lecture 6.5 - RMSProp: divide the gradient by a running average of its recent
    magnitude", COURSERA: Neural Networks for Machine Learning, 2012.

    M. Arjovsky, S. Chintala and L. Bottou, "Wasserstein GAN", arXiv:1701.07875, 2017 (RMSProp with clip_weights).

    A. Graves, "Generating Sequences With Recurrent Neural Networks", arXiv:1308.0850, 2013 (centered, momentum).

    Examples
    --------
    >>> import numpy as np, rmsfast
    >>> w = np.zeros(3)
    >>> opt = rmsfast.RMSProp(w, lr=0.1)
    >>> for _ in range(1000):
    ...     opt.step(2 * (w - [1, 2, 3]))       # the gradient of (w - target)²
    >>> bool(np.allclose(w, [1, 2, 3], atol=0.1))
    True
    """

    _rule: Callable[..., Any] | None = None  # a Python function instead of the kernel: see reference.py

    @with_our_names
    def __init__(
        self,
        params: Any,
        lr: Rate = 1e-3,
        beta: Rate = 0.9,
        eps: float = 1e-8,
        *,
        momentum: float = 0.0,
        nesterov: bool = False,
        centered: bool = False,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
        eps_inside_sqrt: bool = False,
        lr_in_momentum: bool = False,
        bias_correction: bool = False,
        initial_square_avg: float = 0.0,
        maximize: bool = False,
        clip_value: float | None = None,
        clip_norm: float | None = None,
        clip_global_norm: float | None = None,
        clip_weights: float | None = None,
        nonfinite: str = "propagate",
        ema_decay: float | None = None,
        state_dtype: Any = None,
        master_weights: bool = False,
        rounding: str = "nearest",
        seed: int = 0,
        num_threads: int | None = None,
    ) -> None:
        given = locals()
        self._defaults = as_settings({name: given[name] for name in SETTINGS})
        self._changed = steps.Flag()
        self._front = steps.ArrayFront(self._changed, read_settings, num_threads, type(self)._rule)
        single = is_array(params)
        groups: list[ParamGroup] = []
        for i, group in enumerate(as_groups(params)):
            first = sum(len(g["params"]) for g in groups)
            groups.append(as_group(group, i, first, single, self._defaults, self._changed))
        self._front.add_groups(groups, single)
        plan = self._front.plan
        self._front.loans = as_loans("params", plan.keys, plan.params, plan.single)

    def step(self, grads: Any = None, *, grad_scale: float = 1.0, zero_grads: bool = False) -> None:
        """Update every parameter by its gradient, in place.

        Parameters
        ----------
        grads : array, sequence, mapping or tree of arrays
            The gradients in the form that `params` had, with the parameters' shapes and dtypes, in any memory layout. A
            float16 or bfloat16 parameter also takes a float32 gradient, and the other way round.
            Without this argument, the step uses those that `bind` remembers. A parameter whose gradient is None stays
            as it is, and so do all in a tree below a None. A mapping may omit names, with the same effect and one
            warning. With groups: one entry for each parameter, or for each group. No gradient may share memory with a
            parameter or its state.
            `Rows` instead of an array are the gradient of some rows alone. So is a SciPy sparse matrix in which each
            row is whole or empty.
        grad_scale : float, default 1
            Each gradient is first multiplied by this: finite, ≥ 0. Give 1 / loss scale, or 1 / the number of gradients
            that were added up.
        zero_grads : bool, default False
            Set the gradients to zero in the same pass, also when the step is skipped. They must be writable and share
            no memory with each other. SciPy's sparse matrices are refused, because the step reads copies of them.

        Raises
        ------
        TypeError
            If a gradient is no array or has another dtype than its parameter, or with `zero_grads` is a sparse matrix.
        ValueError
            If a gradient's shape differs, if there are too few or too many, if a name is unknown, if memory is shared,
            or if a parameter was resized or changed since it was given.
        FloatingPointError
            If a gradient has infinite or NaN elements and its group's `nonfinite` is "raise".
        RuntimeError
            Inside `averages`.

        Warns
        -----
        UserWarning
            The first time that a mapping omits names, with the names: a gradient that was forgotten would leave its
            parameter as it is, unseen. Give None for one that you leave alone on purpose.

        Notes
        -----
        The step checks everything before it changes the first element. A call that raises has changed nothing.
        """
        if not self._front.step(grads, grad_scale, zero_grads):
            self._step(grads, grad_scale, zero_grads)

    def bind(self, grads: Any) -> None:
        """Remember gradient arrays that are filled in place: from now on, `step()` takes what is in them.

        Parameters
        ----------
        grads : array, sequence, mapping or tree of arrays
            As for `step`, except `Rows`; or None, to forget them. The arrays must stay where they are. Call `bind`
            again after `add_param_group`.

        Raises
        ------
        TypeError, ValueError
            As `step` would. Nothing has changed then.

        Notes
        -----
        Every step checks the arrays again. Copies and pickles of the optimizer have none bound.

        Examples
        --------
        >>> import numpy as np, rmsfast
        >>> w, g = np.ones(3), np.zeros(3)
        >>> opt = rmsfast.RMSProp(w)
        >>> opt.bind(g)
        >>> for _ in range(10):
        ...     g[:] = 2 * w            # the gradient of w²
        ...     opt.step()
        """
        if grads is None:
            self._front.bind(None)
            self._add_loans([])
            return
        plan = self._front.plan
        arrays = as_line(grads, plan)
        for key, g in zip(plan.keys, arrays, strict=True):
            if isinstance(g, SummedRows):
                label = label_of("grads", key, plan.single)
                raise TypeError(f"{label}: rows, expected an array that is filled in place: give Rows to each step")
        loans = as_loans("grads", plan.keys, arrays, plan.single)
        if not self._front.bind(arrays):
            raise RuntimeError("grads: parameters were added during bind, expected the same ones: call bind again")
        self._add_loans(loans)

    def _add_loans(self, loans: list[Loan]) -> None:
        """Look at these as well from now on, and at no gradients that were bound before."""
        self._front.loans = [loan for loan in self._front.loans if not loan.bound] + loans

    def _step(self, grads: Any, grad_scale: Any, zero_grads: Any) -> None:
        """Take a step with arguments of any form that is allowed."""
        scale = GRAD_SCALE.read(grad_scale, "grad_scale")
        erases = SWITCH.read(zero_grads, "zero_grads")
        if grads is None:
            if not self._front.step(None, scale, erases):
                raise TypeError("grads: None, expected gradients: opt.step(grads), or opt.bind(grads) once before")
            return
        if not self._front.step(as_line(grads, self._front.plan, erases), scale, erases):
            raise RuntimeError("grads: parameters were added during the step, expected the same ones: call step again")

    def mirror(self, copies: Any) -> None:
        """Let each step also write the new parameters, rounded, to arrays of a lower precision, in the same pass.

        Parameters
        ----------
        copies : array, sequence or mapping of arrays
            For float32 parameters, float16 or bfloat16 arrays of the same shapes and memory orders, in the form that
            `params` had, sharing memory with nothing else; None for a parameter that has no copy. Or None instead of
            them all, to write no copies from now on. The parameters are written to them at once, rounded to nearest,
            as by each step and by `load`.

        Raises
        ------
        TypeError, ValueError
            If an array does not fit. Nothing has changed then.

        Notes
        -----
        Copies and pickles of the optimizer have no mirror. Parameters of groups that are added later have no copy.

        Examples
        --------
        >>> import numpy as np, rmsfast
        >>> w = np.ones(3, np.float32)
        >>> sent = np.zeros(3, np.float16)      # what another device computes with
        >>> opt = rmsfast.RMSProp(w, lr=0.5)
        >>> opt.mirror(sent)
        >>> opt.step(2 * w)
        >>> bool((sent == w.astype(np.float16)).all())
        True
        """
        plan = self._front.plan
        arrays = None if copies is None else as_line(copies, plan, kind="copies")
        loans = [] if arrays is None else as_loans("copies", plan.keys, arrays, plan.single)
        if not self._front.mirror(arrays):
            raise RuntimeError("copies: parameters were added during mirror, expected the same ones: call mirror again")
        self._front.loans = [loan for loan in self._front.loans if not loan.label.startswith("copies")] + loans

    def averages(self) -> AbstractContextManager[None]:
        """Let the parameters hold their averages inside a ``with`` block: to evaluate, to export, to draw samples.

        Before the block, the averages (see `ema_decay`) are written to the parameters, to float16 and bfloat16 ones
        rounded to nearest; a `mirror` follows. After it, and also if it raises, the parameters have their own numbers
        again, bit for bit. What is written to them inside is lost. Parameters of groups without an `ema_decay` stay as
        they are.

        Raises
        ------
        ValueError
            If no group has an `ema_decay`, or a parameter was resized or changed since it was given. If that happened
            inside the block, all others have their own numbers again.
        RuntimeError
            If it is called inside of itself. Inside the block, steps, `save`, `load`, `load_state_dict`, pickling and
            copying raise it.

        Examples
        --------
        >>> import numpy as np, rmsfast
        >>> w = np.zeros(1)
        >>> opt = rmsfast.RMSProp(w, lr=1.0, beta=0.0, eps=0.0, ema_decay=0.75)
        >>> opt.step(np.ones(1))        # w becomes -1, its average 0.75·0 + 0.25·(-1)
        >>> with opt.averages():
        ...     print(w)
        [-0.25]
        >>> print(w)
        [-1.]
        """
        return steps.Averages(self._front)

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Train more parameters from the next step on.

        Parameters
        ----------
        group : mapping
            ``"params"``, as in the constructor, and settings where they differ from the constructor's. Its parameters
            need names if those of the other groups have names. Otherwise they must have none.

        Raises
        ------
        TypeError, ValueError
            As the constructor.
        """
        plan = self._front.plan
        added = as_group(group, len(plan.groups), len(plan.keys), False, self._defaults, self._changed)
        self._front.add_groups([added], single=False)
        first, plan = len(plan.keys), self._front.plan
        self._add_loans(as_loans("params", plan.keys[first:], plan.params[first:]))

    @property
    def param_groups(self) -> tuple[ParamGroup, ...]:
        """The parameter groups: ``opt.param_groups[0]["lr"] = 0.01`` changes a setting between two steps."""
        return tuple(self._front.plan.groups)

    @property
    def current_lr(self) -> float:
        """The learning rate of the next step as a number. A schedule is asked for it.

        Like `lr`, it is that of all groups (ValueError if they differ).
        """
        return number_at("lr", self.lr, self.steps)  # type: ignore[no-any-return]

    @property
    def steps(self) -> int:
        """How many steps were taken, whichever parameters had gradients. Skipped steps do not count."""
        return self._front.steps

    @property
    def skipped_steps(self) -> int:
        """How many steps were skipped because of nonfinite gradients (see `nonfinite`)."""
        return self._front.skipped

    @property
    def state(self) -> Mapping[Any, Mapping[str, Any]]:
        """For each parameter, by name or index: its ``step`` count, and the arrays that the steps update.

        ``square_avg`` is v. ``grad_avg`` is m, and exists once the parameter's group was centered. ``momentum_buffer``
        is b, and exists once the group had a momentum. ``ema`` is a, and exists once it had an `ema_decay`. The mapping
        cannot be changed; use `load_state_dict`.
        """
        _, entries = self._front.state()
        return MappingProxyType({key: MappingProxyType({"step": step, **arrays}) for key, step, arrays in entries})

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of the state and the settings, in PyTorch's layout.

        Returns
        -------
        dict
            ``state``: for each parameter, by name or index, a dict of ``step``, an int, and the arrays ``square_avg``
            and, where there are any, ``grad_avg``, ``momentum_buffer`` and ``ema``. ``param_groups``: for each group,
            a dict of its settings and of ``params``, the names or indices of its parameters. Where a setting has a
            schedule, ``step``, the number of steps taken, is there, too. A callable of your own is left out.
        """
        return as_state_dict(self._front.snapshot())

    def load_state_dict(self, state_dict: Mapping[str, Any], *, settings: bool = True) -> None:
        """Continue from what `state_dict` returned. The parameters stay as they are. If it raises, nothing changes.

        Parameters
        ----------
        state_dict : mapping
            It has the same groups and the same parameters, by name or index, of the same shapes and dtypes. A setting
            that is missing stays as it is.
        settings : bool, default True
            As for `load`.

        Raises
        ------
        TypeError, ValueError
            If something is missing, unknown, of a wrong type, or does not fit, if a number would take the place of a
            schedule, or if a parameter was resized or changed since it was given.
        """
        self._front.restore(*as_restored(self._front, state_dict, SWITCH.read(settings, "settings")))

    def save(self, path: str | PathLike[str], extra: Any = None) -> None:
        """Write the parameters, their state and the settings to one file, from which `load` continues.

        Parameters
        ----------
        path : str or path
            The file; ``.npz`` is the usual ending. A file with this name is replaced in one operation, once the new
            one is complete and on the disk: after a crash, one of the two is there. The new one has the old one's
            permissions.
        extra : optional
            What else your run needs to go on, such as ``{"epoch": 3, "rng": rng.bit_generator.state}``: None, a bool, a
            number, a str, or lists and mappings of such, as JSON has them. Arrays and tuples become lists. `load`
            returns it.

        Raises
        ------
        OSError
            If the file cannot be written, or `path` is a folder or a device. An old file stays as it was.
        TypeError, ValueError
            If JSON cannot hold `extra`. An old file stays as it was.

        Notes
        -----
        `numpy.savez` writes the file, without pickles; bfloat16 arrays as their 16 bits, in uint16. A schedule of
        `rmsfast.schedules` is part of it. A callable of your own is not, but that there was one is.

        A process that is killed while it saves leaves a part of the new file beside the old one, under a name such as
        ``.rmsfast.0123456789abcdef.tmp``. Nothing reads such a file. You may delete it when no process saves there.
        """
        from rmsfast import checkpoint  # here, because it would double the time that `import rmsfast` takes

        added = checkpoint.as_json("extra", extra)
        taken = self._front.snapshot(with_params=True)
        checkpoint.write(path, as_state_dict(taken), taken.params, taken.skipped, added)

    def load(self, path: str | PathLike[str], *, settings: bool = True) -> Any:
        """Continue from what `save` wrote: parameters, state and settings. If it raises, nothing changes.

        Parameters
        ----------
        path : str or path
            A file from `save`. Its optimizer had the same groups of parameters, with the same names (if any), shapes
            and dtypes.
        settings : bool, default True
            False takes the parameters, their state and the counts of steps, and leaves the settings as they are here.
            State that they need and the file lacks begins with zeros.

        Returns
        -------
        object
            The `extra` of `save`, or None.

        Raises
        ------
        OSError
            If the file cannot be read.
        TypeError, ValueError
            If the file is damaged, not from `save`, of an unknown version, or of another optimizer, or if a parameter
            was resized or changed since it was given.
        ValueError
            If a number in the file would take the place of a schedule here. If the file was saved with a callable of
            your own, and this optimizer has none; or with one of `rmsfast.schedules`, and this optimizer has a callable
            of your own. Give this optimizer what was saved before you load, or load with ``settings=False``.

        Notes
        -----
        The file may come from anyone: nothing in it is executed, and reading it takes memory in proportion to its
        size, as the arrays do. Its digest shows damage, but no forgery.
        """
        from rmsfast import checkpoint

        with_settings = SWITCH.read(settings, "settings")
        state_dict, saved, skipped, extra = checkpoint.read(path)
        plan, steps, states, values, steps_taken = as_restored(self._front, state_dict, with_settings)
        params = [as_like(f"params[{key!r}]", saved[key], w) for key, w in zip(plan.keys, plan.params, strict=True)]
        skipped = as_count("skipped_steps", skipped)
        self._front.restore(plan, steps, states, values, steps_taken, params, skipped)
        return extra

    def __copy__(self) -> "RMSProp":
        twin = type(self).__new__(type(self))
        twin.__dict__.update(self.__dict__)  # it has the same parameters, so the same state
        return twin

    def __getstate__(self) -> dict[str, Any]:
        taken = self._front.snapshot(with_params=True)
        plan, saved = taken.plan, as_state_dict(taken)
        for key in taken.fresh:  # it begins anew with what the copied parameter is at its first step
            del saved["state"][key]["ema"]
        return {
            # The arrays themselves, because a model in the same copy has them, too. They may change before they are
            # copied, so their "values" are here as well.
            "params": plan.params[0]
            if plan.single
            else [{**group, **values} for group, values in zip(plan.groups, taken.settings, strict=True)],
            "settings": taken.settings[0] if plan.single else {},
            "defaults": self._defaults,
            "num_threads": self._front.num_threads,
            "steps_taken": taken.steps,
            "skipped_steps": taken.skipped,
            "state_dict": saved,
            "values": taken.params,
            "attributes": {name: value for name, value in vars(self).items() if name not in _OWN_ATTRIBUTES},
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        RMSProp.__init__(self, state["params"], **state["settings"], num_threads=state["num_threads"])
        self._defaults = state["defaults"]
        plan, steps, states, settings, _ = as_restored(self._front, state["state_dict"])
        taken, skipped = state["steps_taken"], state["skipped_steps"]
        self._front.restore(plan, steps, states, settings, taken, state["values"], skipped)
        self.__dict__.update(state["attributes"])

    def __repr__(self) -> str:
        return summary(type(self).__name__, self._front)


# What __setstate__ makes anew. All other attributes belong to a subclass.
_OWN_ATTRIBUTES = ("_defaults", "_changed", "_front")


def rmsprop_update(
    w: Any,
    v: Any,
    g: Any,
    *,
    lr: float = 1e-3,
    beta: float = 0.9,
    eps: float = 1e-8,
    num_threads: int | None = None,
) -> None:
    """Take one RMSProp step on one array. You keep its state v; w and v are updated in place.

    ::

        v ← beta·v + (1 − beta)·g²
        w ← w − lr·g / (√v + eps)

    Parameters
    ----------
    w, v : array
        The parameter and the running average of its squared gradient: float32, float64, complex64 or complex128, of one
        shape and dtype, both in C or both in Fortran order, aligned, writable, not sharing memory.
    g : array
        The gradient: the same shape and dtype, in any memory layout, sharing no memory with w or v. Beside float32
        arrays it may be float16 or bfloat16.
    lr, beta, eps : float
        The learning rate (≥ 0), the decay (from 0 to 1), and the number that is added to the root (≥ 0).
    num_threads : int, optional
        The most threads to use. No more are used than this process has cores (`set_num_threads` says when they are
        counted). The default is what `get_num_threads` returns.

    Raises
    ------
    TypeError
        If an argument or an array has a wrong type or dtype.
    ValueError
        If a shape, a memory layout or a setting is not allowed, or arrays share memory.

    References
    ----------
    T. Tieleman and G. Hinton, "Lecture 6.5 - RMSProp", COURSERA: Neural Networks for Machine Learning, 2012.
    """
    update_with(None, w, v, g, lr, beta, eps, num_threads)


def update_with(
    rule: Callable[..., None] | None,
    w: Any,
    v: Any,
    g: Any,
    lr: float,
    beta: float,
    eps: float,
    num_threads: int | None,
) -> None:
    """Check the arguments of `rmsprop_update`, then let rule(w, v, g) compute, or the kernel if the rule is None."""
    update_one(
        as_array("w", w),
        as_array("v", v),
        as_array("g", g),
        SETTINGS["lr"].read(lr, "lr"),
        SETTINGS["beta"].read(beta, "beta"),
        SETTINGS["eps"].read(eps, "eps"),
        num_threads,
        rule,
    )

"""What a group of `rmsfast.torch.RMSprop` holds: our settings beside PyTorch's, as they are read, saved and loaded.

A setting of ours that has PyTorch's rule as its value is left out of a group. So a group looks like PyTorch's own, and
a checkpoint of one optimizer has the keys that the other asks for.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from rmsfast.settings import SETTINGS, check_together

# Our settings, and the values with which the rule is PyTorch's.
OURS: dict[str, Any] = {
    "eps_inside_sqrt": False,
    "lr_in_momentum": False,
    "initial_square_avg": 0.0,
    "decoupled_weight_decay": False,
    "nesterov": False,
    "bias_correction": False,
    "clip_value": None,
    "clip_norm": None,
    "clip_global_norm": None,
    "clip_weights": None,
    "nonfinite": "propagate",
    "ema_decay": None,
    "state_dtype": None,
    "master_weights": False,
    "rounding": "nearest",
    "seed": 0,
}
# The same for the rule of TensorFlow 1, as Stable-Baselines3 and timm have it.
TF_LIKE: dict[str, Any] = {**OURS, "eps_inside_sqrt": True, "initial_square_avg": 1.0}
# Those of PyTorch that a group from an older version may lack, and those that each has.
LATER: dict[str, Any] = {"momentum": 0, "centered": False, "foreach": None, "maximize": False}
NEEDED: tuple[str, ...] = ("lr", "alpha", "eps", "weight_decay")
# Those that have no effect here, and are refused.
REFUSED = {
    "capturable": "the step runs on the CPU, where there are no graphs to capture",
    "differentiable": "no gradient flows through a step",
}
# Those of timm's `RMSpropTF` that change its rule to one that we do not have.
TIMMS = {
    "caution": "updates are not masked by the sign of the gradient",
    "corrected_weight_decay": "weight decay is added to g, or takes lr·weight_decay·w",
}
# The kernel's names of the settings that have others here.
NATIVE_NAMES = {"alpha": "beta"}
NUMBERS = ("lr", "alpha", "eps", "weight_decay", "momentum", "initial_square_avg")
SWITCHES = ("centered", "maximize", *(name for name, value in OURS.items() if value is False))
CLIPPED = ("clip_value", "clip_norm", "clip_global_norm", "clip_weights")
CHECKED = (*CLIPPED, "nonfinite", "ema_decay", "state_dtype", "rounding", "seed")
# What looks the same while its value changes, as a tensor that is a learning rate.
FIXED = (float, int, bool, str, type(None))


def setting_of(group: Mapping[str, Any], name: str) -> Any:
    """Return a setting of ours, which a group may leave out."""
    return group[name] if name in group else OURS[name]


def read_settings(group: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """Return the kernel's settings of a group, and whether they may change without the group showing it."""
    group = {**OURS, **group}
    settings: dict[str, Any] = {}
    for name in NUMBERS:
        settings[NATIVE_NAMES.get(name, name)] = float(group[name])
    for name in SWITCHES:
        settings[name] = bool(group[name])
    for name in CHECKED:
        settings[name] = SETTINGS[name].read(group[name], name)
    if settings["momentum"] < 0:  # PyTorch asks whether it is > 0
        settings["momentum"] = 0.0
    check_together(settings)
    return settings, any(type(group[name]) not in FIXED for name in (*NUMBERS, *CHECKED))


def asks_for_measures(group: Mapping[str, Any]) -> bool:
    """Whether a group's settings need the norm of its gradients, or their count of nonfinite numbers."""
    if setting_of(group, "nonfinite") != "propagate":
        return True
    return any(setting_of(group, name) is not None for name in ("clip_norm", "clip_global_norm"))


def refuse(group: Mapping[str, Any]) -> None:
    """Raise for settings that have no effect here."""
    for name, reason in REFUSED.items():
        if group.get(name):
            raise ValueError(f"{name}: True, expected False: {reason}")


def without_usual(settings: Mapping[str, Any], rule: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings without those that are as PyTorch's rule has them, and as the class's own rule has them.

    What a group lacks is filled in by that rule when the group is loaded. So a setting stays if the two rules differ.
    """
    return {
        name: value
        for name, value in settings.items()
        if name not in OURS or type(value) not in FIXED or not value == OURS[name] == rule[name]
    }


def as_saved(group: dict[str, Any]) -> dict[str, Any]:
    """Return a group as it is saved: with the settings that timm's optimizer asks for, where ε is where timm has it."""
    if not setting_of(group, "eps_inside_sqrt"):
        return group
    return {
        **group,
        "lr_in_momentum": setting_of(group, "lr_in_momentum"),
        "decoupled_decay": setting_of(group, "decoupled_weight_decay"),
        **dict.fromkeys(TIMMS, False),
    }


def as_loaded(group: Mapping[str, Any], rule: Mapping[str, Any], label: str) -> dict[str, Any]:
    """Return a saved group of PyTorch's, Stable-Baselines3's, timm's or our own optimizer as one of ours, or raise.

    Settings that are missing are as `rule` has them. A group with a `decoupled_decay` is timm's, so its rule is known.
    """
    missing = [name for name in NEEDED if name not in group]
    if missing:
        hint = ": rmsfast.torch.from_native makes one of rmsfast.RMSProp's state" if "beta" in group else ""
        raise ValueError(f"{label}: no {' and no '.join(missing)}, expected the state of an RMSprop{hint}")
    for name, reason in TIMMS.items():
        if group.get(name):
            raise ValueError(f"{label}: {name}: {group[name]!r}, expected False: {reason}")
    loaded = {name: value for name, value in group.items() if name not in TIMMS}
    if "decoupled_decay" in loaded:
        decoupled = bool(loaded.pop("decoupled_decay"))
        loaded = {**TF_LIKE, **loaded, "decoupled_weight_decay": decoupled}
    loaded = {**LATER, **rule, **loaded, **dict.fromkeys(REFUSED, False)}  # a run on a GPU may go on here
    try:
        read_settings(loaded)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{label}: {error}") from None
    return without_usual(loaded, rule)


def load_in_place(groups: Iterable[dict[str, Any]], rule: Mapping[str, Any]) -> None:
    """Make saved groups ours: all of them, or none where one is refused."""
    groups = list(groups)
    loaded = [as_loaded(group, rule, f"param_groups[{i}]") for i, group in enumerate(groups)]
    for group, settings in zip(groups, loaded, strict=True):
        group.clear()
        group.update(settings)

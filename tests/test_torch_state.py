"""State dicts of `rmsfast.torch`, and those that it loads: what each means, and what is in it."""

import copy
import inspect

import numpy as np
import pytest

import rmsfast

torch = pytest.importorskip("torch")
import rmsfast.torch as ours  # noqa: E402
from rmsfast.torch_groups import OURS  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # what PyTorch says about itself
Theirs = torch.optim.RMSprop
PYTORCHS = {name: value for name, value in Theirs([torch.ones(1)]).param_groups[0].items() if name != "params"}


def make(cls, **settings):
    """A small model and its optimizer: the same model each time."""
    torch.manual_seed(20261121)
    model = torch.nn.Linear(3, 2).double()
    return model, cls(model.parameters(), **settings)


def train(model, optimizer, steps=3, seed=0):
    """Train on the same batches each time."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 3, generator=generator, dtype=torch.float64)).square().sum().backward()
        optimizer.step()


def settings_of(optimizer):
    return {name: value for name, value in optimizer.state_dict()["param_groups"][0].items() if name != "params"}


# ---- What is saved ----


def test_a_saved_group_has_pytorchs_settings_alone_where_the_rule_is_pytorchs():
    _, optimizer = make(ours.RMSprop, clip_norm=None, nesterov=False, initial_square_avg=0)
    assert settings_of(optimizer) == PYTORCHS
    assert repr(optimizer) == repr(make(Theirs)[1])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr_in_momentum", True),
        ("initial_square_avg", 0.5),
        ("decoupled_weight_decay", True),
        ("bias_correction", True),
        ("clip_value", 1.0),
        ("clip_norm", 1.0),
        ("clip_global_norm", 1.0),
        ("clip_weights", 0.1),
        ("nonfinite", "skip"),
        ("ema_decay", 0.9),
    ],
)
def test_a_saved_group_has_each_setting_that_differs(name, value):
    model, optimizer = make(ours.RMSprop, **{name: value})
    train(model, optimizer)
    assert settings_of(optimizer) == {**PYTORCHS, name: value}
    other, loaded = make(ours.RMSprop)
    other.load_state_dict(model.state_dict())
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, optimizer, seed=1)
    train(other, loaded, seed=1)
    assert torch.equal(model.weight, other.weight)


@pytest.mark.parametrize("settings", [{}, {"eps_inside_sqrt": False}, {"initial_square_avg": 0.0}])
def test_a_saved_group_of_tf_likes_says_what_its_rule_is(settings):
    """Also where a value is PyTorch's: what is left out is loaded as TensorFlow has it."""
    model, optimizer = make(ours.RMSpropTFLike, **settings)
    train(model, optimizer)
    _, loaded = make(ours.RMSpropTFLike)
    loaded.load_state_dict(optimizer.state_dict())
    expected = {"eps_inside_sqrt": True, "initial_square_avg": 1.0, **settings}
    assert {name: loaded.param_groups[0].get(name) for name in expected} == expected


def test_settings_of_a_group_can_be_set_where_it_has_none():
    model, optimizer = make(ours.RMSprop, lr=0.1)
    train(model, optimizer)
    before = model.weight.detach().clone()
    optimizer.param_groups[0]["clip_value"] = 1e-300
    train(model, optimizer, 1)
    assert torch.allclose(model.weight, before)
    assert settings_of(optimizer) == {**PYTORCHS, "lr": 0.1, "clip_value": 1e-300}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=["the kernel's", "another"])
def test_a_group_is_exchanged_while_its_rate_is_a_tensor(dtype):
    p = torch.nn.Parameter(torch.zeros(2, dtype=dtype))
    optimizer = ours.RMSprop([p], lr=torch.tensor(0.5), alpha=0.0)
    for _ in range(2):
        p.grad = torch.ones_like(p)
        optimizer.step()
    optimizer.param_groups[0] = {**optimizer.param_groups[0], "lr": 2.0}
    optimizer.step()
    assert p.tolist() == pytest.approx([-3.0, -3.0])


def test_an_optimizer_is_one_of_pytorchs_rmsprop():
    for cls in ours.RMSprop, ours.RMSpropTFLike:
        assert isinstance(make(cls)[1], Theirs)


def test_tf_like_lists_its_keywords():
    """For tools that read signatures, such as jsonargparse."""
    base = inspect.signature(ours.RMSprop).parameters
    tf_like = inspect.signature(ours.RMSpropTFLike).parameters
    assert list(tf_like) == list(base)
    differ = {name for name in base if tf_like[name].default != base[name].default}
    assert differ == {"eps_inside_sqrt", "initial_square_avg"}
    assert all(p.kind is not inspect.Parameter.VAR_KEYWORD for p in tf_like.values())
    optimizer = make(ours.RMSpropTFLike, nesterov=True, momentum=0.5, clip_norm=2.0, num_threads=1)[1]
    assert optimizer.defaults["nesterov"] is True
    assert optimizer.defaults["clip_norm"] == 2.0
    assert optimizer.num_threads == 1


# ---- What is loaded ----


def stable_baselines(**settings):
    """The settings in a group of Stable-Baselines3's RMSpropTFLike."""
    return {"lr": 1e-2, "momentum": 0, "alpha": 0.99, "eps": 1e-8, "centered": False, "weight_decay": 0, **settings}


def timms(**settings):
    """The settings in a group of timm's RMSpropTF."""
    usual = {"alpha": 0.9, "eps": 1e-10, "decoupled_decay": False, "lr_in_momentum": True}
    return stable_baselines(**{**usual, "caution": False, "corrected_weight_decay": False, "foreach": None, **settings})


def saved(settings, start=1.0, momentum=0.0):
    """A state dict with these settings, in the middle of a run, its step counts as ints."""
    shapes = {0: (2, 3), 1: (2,)}
    rng = np.random.default_rng(0)
    entries = {key: {"step": 5, "square_avg": start + torch.tensor(rng.random(shape))} for key, shape in shapes.items()}
    for key, entry in entries.items():
        if settings["momentum"]:
            entry["momentum_buffer"] = torch.tensor(rng.random(shapes[key]))
    return {"state": entries, "param_groups": [{**settings, "params": [0, 1]}]}


@pytest.mark.parametrize("cls", [ours.RMSprop, ours.RMSpropTFLike])
@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("lr_in_momentum", [False, True])
def test_timms_groups_mean_the_same_to_both_classes(cls, decoupled, lr_in_momentum):
    settings = timms(momentum=0.9, weight_decay=0.1, decoupled_decay=decoupled, lr_in_momentum=lr_in_momentum)
    state_dict = saved(settings)
    model, optimizer = make(cls)
    optimizer.load_state_dict(copy.deepcopy(state_dict))
    arrays = [p.detach().numpy().copy() for p in model.parameters()]
    native = rmsfast.RMSProp(
        arrays,
        **rmsfast.dialects.timm(
            momentum=0.9, weight_decay=0.1, decoupled_decay=decoupled, lr_in_momentum=lr_in_momentum
        ),
    )
    native.load_state_dict(
        {
            "state": {
                key: {name: np.asarray(value) if name != "step" else value for name, value in entry.items()}
                for key, entry in state_dict["state"].items()
            },
            "param_groups": native.state_dict()["param_groups"],
        }
    )
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    native.step([np.ones_like(w) for w in arrays])
    for p, w in zip(model.parameters(), arrays, strict=True):
        assert p.detach().numpy().tobytes() == w.tobytes()
    assert [int(entry["step"]) for entry in optimizer.state.values()] == [6, 6]


def test_a_group_of_ours_has_what_timms_optimizer_asks_for():
    _, optimizer = make(ours.RMSpropTFLike, decoupled_weight_decay=True, weight_decay=0.1)
    group = settings_of(optimizer)
    assert timms().keys() <= group.keys()
    expected = {"decoupled_decay": True, "lr_in_momentum": False, "caution": False, "corrected_weight_decay": False}
    assert {name: group[name] for name in expected} == expected
    _, loaded = make(ours.RMSpropTFLike)
    loaded.load_state_dict(optimizer.state_dict())
    assert loaded.param_groups[0]["decoupled_weight_decay"] is True
    assert "decoupled_decay" not in loaded.param_groups[0]


@pytest.mark.parametrize(("cls", "inside", "start"), [(ours.RMSprop, False, 0.0), (ours.RMSpropTFLike, True, 1.0)])
def test_what_a_group_lacks_is_as_the_class_that_loads_has_it(cls, inside, start):
    """Whatever its defaults are: the settings of an optimizer are those that it loads."""
    for settings in stable_baselines(), PYTORCHS:
        _, optimizer = make(cls, clip_norm=1.0, eps_inside_sqrt=not inside)
        optimizer.load_state_dict(saved(settings))
        group = {**OURS, **optimizer.param_groups[0]}
        expected = {**OURS, "eps_inside_sqrt": inside, "initial_square_avg": start}
        assert {name: group[name] for name in OURS} == expected


def test_a_run_on_a_gpu_goes_on_here():
    _, optimizer = make(ours.RMSprop)
    optimizer.load_state_dict(saved({**PYTORCHS, "capturable": True}))
    assert optimizer.param_groups[0]["capturable"] is False


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (timms(caution=True), "caution: True, expected False: updates are not masked"),
        (timms(corrected_weight_decay=True), "corrected_weight_decay: True, expected False: weight decay is"),
        (
            {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0, "momentum": 0},
            "no alpha, expected the state",
        ),
        (
            {"lr": 0.1, "beta": 0.9, "momentum": 0},
            "no alpha and no eps and no weight_decay, .*: rmsfast.torch.from_native",
        ),
        ({**PYTORCHS, "nesterov": True}, "nesterov: True with momentum 0"),
        ({**PYTORCHS, "clip_norm": -1.0}, "clip_norm: -1.0, expected a number > 0"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value[:14],
)
def test_what_cannot_be_meant_is_refused_and_nothing_changes(settings, message):
    model, optimizer = make(ours.RMSpropTFLike)
    train(model, optimizer)
    group, before = optimizer.param_groups[0], copy.deepcopy(optimizer.state_dict())
    given = saved(settings)
    copied = copy.deepcopy(given)
    with pytest.raises(ValueError, match=rf"^param_groups\[0\]: {message}"):
        optimizer.load_state_dict(given)
    assert str(given) == str(copied)
    assert optimizer.param_groups[0] is group
    assert str(optimizer.state_dict()) == str(before)


def test_timms_state_becomes_the_native_optimizers():
    native = ours.to_native(saved(timms(decoupled_decay=True, weight_decay=0.1)))["param_groups"][0]
    assert native["eps_inside_sqrt"] is native["decoupled_weight_decay"] is native["lr_in_momentum"] is True


# ---- Distributed checkpoints ----


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no torch.distributed")
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("settings", [{}, {"momentum": 0.9, "centered": True}], ids=str)
@pytest.mark.parametrize(
    ("first", "second"),
    [(Theirs, ours.RMSprop), (ours.RMSprop, Theirs), (ours.RMSprop, ours.RMSprop), (ours.RMSpropTFLike,) * 2],
    ids=["theirs to ours", "ours to theirs", "ours", "tf-like"],
)
def test_a_distributed_checkpoint_goes_on_in_the_other_optimizer(first, second, settings, flat, tmp_path):
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint import state_dict as parts

    if not hasattr(parts.StateDictOptions, "flatten_optimizer_state_dict"):
        pytest.skip("this PyTorch has no flat state dicts")
    options = parts.StateDictOptions(flatten_optimizer_state_dict=flat)

    def as_dict(model, optimizer):
        return {
            "model": model.state_dict(),
            "optimizer": parts.get_optimizer_state_dict(model, optimizer, options=options),
        }

    model, optimizer = make(first, lr=0.003, eps=1e-3, **settings)
    train(model, optimizer)
    checkpoint.save(as_dict(model, optimizer), checkpoint_id=tmp_path)
    other, loaded = make(second, **settings)
    state = as_dict(other, loaded)
    checkpoint.load(state, checkpoint_id=tmp_path)
    other.load_state_dict(state["model"])
    parts.set_optimizer_state_dict(other, loaded, state["optimizer"], options=options)
    assert loaded.param_groups[0]["lr"] == 0.003
    train(model, optimizer, seed=1)
    train(other, loaded, seed=1)
    torch.testing.assert_close(other.weight, model.weight, rtol=1e-12, atol=1e-12)

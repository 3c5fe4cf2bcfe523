"""Runs of Stable-Baselines3's and timm's own optimizers that go on in ours, and ours in theirs: the same trajectory."""

import copy
import importlib
import importlib.util
import io
import sys
import types
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
import rmsfast.torch as ours  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # what the clients say about themselves


def stable_baselines():
    pytest.importorskip("stable_baselines3")
    from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike

    return RMSpropTFLike


def timm():
    """Its optimizer by itself: all of timm needs a torchvision that fits PyTorch's build."""
    found = importlib.util.find_spec("timm")
    if found is None:
        pytest.skip("timm is not installed")
    package = types.ModuleType("optimizers_of_timm")
    package.__path__ = [str(Path(folder, "optim")) for folder in found.submodule_search_locations]
    sys.modules[package.__name__] = package
    return importlib.import_module(f"{package.__name__}.rmsprop_tf").RMSpropTF


COMMON = [{}, {"momentum": 0.9}, {"centered": True, "momentum": 0.5}, {"weight_decay": 0.1, "lr": 0.1}]
RUNS = [
    *[(stable_baselines, ours.RMSpropTFLike, settings) for settings in COMMON],
    *[
        (timm, cls, {**settings, **extra})
        for cls in (ours.RMSpropTFLike, ours.RMSprop)
        for settings in COMMON
        for extra in ({}, {"decoupled_decay": True}, {"lr_in_momentum": False})
    ],
]


def make(cls, settings):
    torch.manual_seed(20261121)
    model = torch.nn.Linear(5, 3).double()
    return model, cls(model.parameters(), **settings)


def train(model, optimizer, steps, seed):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, 5, generator=generator, dtype=torch.float64)).square().sum().backward()
        optimizer.step()


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize(("client", "cls", "settings"), RUNS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_a_run_goes_on_in_ours_and_then_in_theirs_again(client, cls, settings):
    """An ε of 1e-3, as is usual with these: where v − m² cancels, rounding is divided by what is left."""
    Theirs = client()
    model, theirs = make(Theirs, {"eps": 1e-3, **settings})
    train(model, theirs, 5, seed=0)

    other, mine = make(cls, {})
    other.load_state_dict(model.state_dict())
    mine.load_state_dict(through_a_file(copy.deepcopy(theirs.state_dict())))
    train(model, theirs, 5, seed=1)
    train(other, mine, 5, seed=1)
    torch.testing.assert_close(other.weight, model.weight, rtol=1e-10, atol=1e-12)

    third, back = make(Theirs, {})
    third.load_state_dict(other.state_dict())
    back.load_state_dict(through_a_file(copy.deepcopy(mine.state_dict())))
    train(model, theirs, 5, seed=2)
    train(third, back, 5, seed=2)
    torch.testing.assert_close(third.weight, model.weight, rtol=1e-10, atol=1e-12)


def test_what_timm_has_and_we_have_not_is_refused():
    for name in "caution", "corrected_weight_decay":
        model, theirs = make(timm(), {name: True, "weight_decay": 0.1})
        train(model, theirs, 2, seed=0)
        with pytest.raises(ValueError, match=rf"param_groups\[0\]: {name}: True, expected False: "):
            make(ours.RMSpropTFLike, {})[1].load_state_dict(theirs.state_dict())


@pytest.mark.parametrize("cls", [ours.RMSprop, ours.RMSpropTFLike])
def test_jsonargparse_makes_one_from_a_command_line(cls):
    """As LightningCLI does, which refuses keywords that it cannot read."""
    jsonargparse = pytest.importorskip("jsonargparse")
    parser = jsonargparse.ArgumentParser()
    parser.add_class_arguments(cls, "optimizer", skip={"params"})
    given = parser.parse_args(["--optimizer.lr=0.5", "--optimizer.clip_norm=2", "--optimizer.eps_inside_sqrt=true"])
    optimizer = cls([torch.ones(1, requires_grad=True)], **vars(given.optimizer))
    assert optimizer.defaults["clip_norm"] == 2.0
    with pytest.raises(SystemExit):
        parser.parse_args(["--optimizer.no_such=1"])

"""`rmsfast.torch.step_in_backward`: the same training, no gradients left, an error for a loop that it does not fit."""

import copy
import gc
import pickle
import re
import weakref

import pytest

torch = pytest.importorskip("torch")
import rmsfast.torch as ours  # noqa: E402
from rmsfast.torch import step_in_backward  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # what PyTorch says about itself


class Model(torch.nn.Module):
    """With a parameter that the graph has twice, one that it has sometimes, rows of a table, and one in bfloat16."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(10, 4, sparse=True, dtype=torch.float64)
        self.twice = torch.nn.Linear(4, 4).double()
        self.sometimes = torch.nn.Parameter(torch.ones(4, dtype=torch.float64))
        self.low = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))

    def forward(self, k):
        x = self.twice(self.twice(self.table(torch.tensor([k % 10, 3]))).tanh()) * self.low.double()
        return (x * self.sometimes if k % 3 else x).square().sum()


def make(cls=ours.RMSprop, groups=False, **settings):
    torch.manual_seed(20261121)
    model = Model()
    params = model.parameters()
    if groups:
        params = [{"params": [model.sometimes, model.low], "lr": 0.1}, {"params": [*model.table.parameters()]}]
        params.append({"params": [*model.twice.parameters()], "momentum": 0.5})
    return model, cls(params, **settings)


def turn(model, optimizer, *inputs):
    optimizer.zero_grad()
    for k in inputs:
        model(k).backward()
    optimizer.step()


def assert_same(model, other):
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


def gradients(model):
    return [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("cls", [ours.RMSprop, ours.RMSpropTFLike])
@pytest.mark.parametrize("groups", [False, True])
@pytest.mark.parametrize(
    "settings", [{}, {"momentum": 0.9, "weight_decay": 0.1, "clip_value": 0.5}, {"centered": True, "clip_norm": 0.1}]
)
def test_the_same_training_with_the_same_bits(cls, groups, settings):
    (model, optimizer), (other, plain) = make(cls, groups, **settings), make(cls, groups, **settings)
    step_in_backward(optimizer)
    schedulers = [torch.optim.lr_scheduler.StepLR(o, 2, 0.5) for o in (optimizer, plain)]
    for k in range(8):
        turn(model, optimizer, k)
        assert gradients(model) == []
        turn(other, plain, k)
        for scheduler in schedulers:
            scheduler.step()
        assert_same(model, other)
    mine, theirs = optimizer.state_dict(), plain.state_dict()
    assert mine["param_groups"] == theirs["param_groups"]
    assert str(sorted(mine["state"].items())) == str(sorted(theirs["state"].items()))


def test_a_parameter_moves_and_its_gradient_is_freed_while_backward_goes_on():
    """The gradients of the layers after it are gone when the one of the first layer comes."""
    first, last = (torch.nn.Linear(4, 4) for _ in range(2))
    optimizer = ours.RMSprop([*first.parameters(), *last.parameters()])
    before, seen = last.weight.detach().clone(), []
    step_in_backward(optimizer)
    first.weight.register_hook(lambda grad: seen.append((last.weight.grad, torch.equal(last.weight, before))))
    last(first(torch.ones(2, 4))).sum().backward()
    assert seen == [(None, False)]


def test_step_and_zero_grad_change_nothing_more_and_keep_no_gradient():
    model, optimizer = make()
    step_in_backward(optimizer)
    model(1).backward()
    before = copy.deepcopy(model)
    optimizer.step()
    optimizer.zero_grad()
    assert_same(model, before)
    assert [int(entry["step"]) for entry in optimizer.state.values()] == [1] * len(list(model.parameters()))


def test_a_closure_and_hooks_of_the_step():
    model, optimizer = make()
    step_in_backward(optimizer)
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))

    def closure():
        optimizer.zero_grad()
        loss = model(1)
        loss.backward()
        return loss

    before = copy.deepcopy(model)
    assert torch.equal(optimizer.step(closure), before(1))
    assert calls == ["before", "after"]
    assert not torch.equal(model.low, before.low)


@pytest.mark.parametrize("every", [2, 3])
def test_every_few_gradients(every):
    """A parameter that has had fewer is updated by the step, as in an ordinary loop."""
    (model, optimizer), (other, plain) = make(), make()
    handle = step_in_backward(optimizer, every=every)
    assert repr(handle) == f"StepInBackward(5 parameters, every={every})"
    for k in range(0, 12, every):
        inputs = range(k, k + every)
        turn(model, optimizer, *inputs)
        turn(other, plain, *inputs)
        assert gradients(model) == []
        assert_same(model, other)


def test_gradients_that_are_given_up_in_the_middle_of_a_turn():
    (model, optimizer), (other, plain) = make(), make()
    step_in_backward(optimizer, every=2)
    model(1).backward()
    assert gradients(model)
    optimizer.zero_grad()
    assert gradients(model) == []
    turn(model, optimizer, 1, 2)
    turn(other, plain, 1, 2)
    assert_same(model, other)


def test_accumulated_gradients_are_an_error_that_says_what_to_do():
    model, optimizer = make()
    step_in_backward(optimizer)
    model(1).backward()
    with pytest.raises(
        RuntimeError, match=r"^parameter \d: gradient 2 of this turn, expected 1, and then optimizer.step"
    ):
        model(1).backward()
    optimizer.zero_grad()
    assert gradients(model) == []
    turn(model, optimizer, 1)


def test_a_grad_scaler_is_an_error_that_says_why():
    model, optimizer = make()
    handle = step_in_backward(optimizer)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(model(1)).backward()
    with pytest.raises(RuntimeError, match="^GradScaler: the parameters were updated in backward, by gradients"):
        scaler.step(optimizer)
    off = torch.amp.GradScaler("cpu", enabled=False)
    optimizer.step()
    off.scale(model(1)).backward()
    off.step(optimizer)
    handle.remove()
    optimizer.zero_grad()
    scaler.scale(model(2)).backward()
    scaler.step(optimizer)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clip_global_norm": 1.0}, "clip_global_norm: 1.0, expected None with step_in_backward: the norm of all"),
        ({"nonfinite": "skip"}, "nonfinite: 'skip', expected 'propagate' with step_in_backward: the first parameters"),
        ({"nonfinite": "raise"}, "nonfinite: 'raise'"),
    ],
)
def test_settings_that_need_all_gradients_are_refused(settings, message):
    model, optimizer = make(**settings)
    with pytest.raises(ValueError, match=re.escape(f"param_groups[0]: {message}")):
        step_in_backward(optimizer)
    turn(model, optimizer, 1)  # as if nothing had been

    model, optimizer = make()
    step_in_backward(optimizer)
    turn(model, optimizer, 1)
    optimizer.param_groups[0].update(settings)
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match=rf"^parameter \d: {re.escape(message)}"):
        model(1).backward()
    assert_same(model, before)


def test_what_is_refused_and_leaves_no_hooks():
    model, optimizer = make()
    with pytest.raises(TypeError, match=r"^optimizer: RMSprop, expected rmsfast.torch.RMSprop"):
        step_in_backward(torch.optim.RMSprop(model.parameters()))
    for every, error in ((0, ValueError), (1.0, TypeError), (True, TypeError)):
        with pytest.raises(error, match=rf"^every: {every}, expected an integer ≥ 1"):
            step_in_backward(optimizer, every=every)
    model(1).backward()
    with pytest.raises(ValueError, match="^parameter 0: has a gradient, expected none"):
        step_in_backward(optimizer)
    optimizer.zero_grad()
    twice = ours.RMSprop([model.low, model.low])
    with pytest.raises(ValueError, match="^optimizer: a parameter is given twice"):
        step_in_backward(twice)
    before = copy.deepcopy(model)
    model(1).backward()
    assert_same(model, before)
    optimizer.zero_grad()
    step_in_backward(optimizer)
    with pytest.raises(ValueError, match="^optimizer: steps in backward already"):
        step_in_backward(optimizer)


def test_remove_gives_the_steps_back():
    (model, optimizer), (other, plain) = make(), make()
    handle = step_in_backward(optimizer)
    turn(model, optimizer, 1)
    handle.remove()
    handle.remove()
    turn(other, plain, 1)
    for k in range(3):
        turn(model, optimizer, k)
        turn(other, plain, k)
        assert gradients(model)
        assert_same(model, other)
    optimizer.zero_grad()
    step_in_backward(optimizer)
    turn(model, optimizer, 4)
    turn(other, plain, 4)
    assert_same(model, other)


@pytest.mark.parametrize("how", ["settings", "state", "entries", "groups", "tensor"])
def test_changes_from_outside_are_seen(how):
    rate = torch.tensor(0.01)
    (model, optimizer), (other, plain) = make(lr=rate), make(lr=rate)
    step_in_backward(optimizer)
    for k in range(3):
        turn(model, optimizer, k)
        turn(other, plain, k)
    for each in optimizer, plain:
        group = each.param_groups[0]
        if how == "settings":
            group.update(lr=0.5, momentum=0.9, clip_value=0.1)
        elif how == "state":
            each.load_state_dict(copy.deepcopy(plain.state_dict()))
        elif how == "entries":
            each.state.clear()
        elif how == "groups":
            each.param_groups[0] = {**group, "lr": 0.3}
        else:
            rate.fill_(0.4)
    for k in range(3):
        turn(model, optimizer, k)
        turn(other, plain, k)
        assert_same(model, other)
    assert [int(entry["step"]) for entry in optimizer.state.values()] == [
        int(entry["step"]) for entry in plain.state.values()
    ]


def test_parameters_that_come_later_or_are_frozen_for_a_time():
    (model, optimizer), (other, plain) = make(), make()
    for m in model, other:
        m.sometimes.requires_grad_(False)
    step_in_backward(optimizer)
    late = []
    for k in range(1, 9):
        for m, o in ((model, optimizer), (other, plain)):
            if k == 3:
                m.late = torch.nn.Parameter(torch.ones(2))
                o.add_param_group({"params": [m.late], "lr": 0.1})
                late.append(m.late)
            if k == 5:
                m.sometimes.requires_grad_(True)
            o.zero_grad()
            loss = m(k)
            if k >= 3:
                loss = loss + m.late.square().sum()
            loss.backward()
            assert m is other or m.sometimes.grad is None or k == 5
            o.step()
        assert_same(model, other)
        assert gradients(model) == []
    assert not torch.equal(late[0], torch.ones(2))


def test_a_parameter_in_no_group_any_more():
    model, optimizer = make()
    step_in_backward(optimizer)
    turn(model, optimizer, 1)
    optimizer.param_groups[0]["params"] = [model.low]
    optimizer.param_groups[0] = dict(optimizer.param_groups[0])
    with pytest.raises(RuntimeError, match=r"^parameter \d: in no group of the optimizer any more"):
        model(1).backward()


def test_copies_are_ordinary_optimizers():
    model, optimizer = make()
    step_in_backward(optimizer)
    turn(model, optimizer, 1)
    for copied in copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer)):
        params = [p for group in copied.param_groups for p in group["params"]]
        for p in params:
            p.grad = torch.ones_like(p)
        before = params[1].detach().clone()
        copied.step()
        assert not torch.equal(params[1], before)
        assert params[1].grad is not None


def test_nothing_is_kept_after_remove():
    model, optimizer = make()
    handle = step_in_backward(optimizer)
    turn(model, optimizer, 1)
    handle.remove()
    gone = weakref.ref(optimizer)
    del optimizer, handle
    gc.collect()
    assert gone() is None
    model(1).backward()


def test_the_example_in_the_docstring():
    import doctest

    from rmsfast import torch_backward

    results = doctest.testmod(torch_backward)
    assert results.attempted > 0
    assert results.failed == 0

"""`rmsfast.torch` in functions that `torch.compile` compiles: a step is one call, left as it is."""

import re

import pytest

torch = pytest.importorskip("torch")
import rmsfast.torch as ours  # noqa: E402
from rmsfast import torch_tensors  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # what PyTorch says about itself
    pytest.mark.thread_unsafe(reason="the compiler and its counters are the process's"),
]


@pytest.fixture
def counter():
    """A backend that compiles nothing and counts the graphs that it is given."""
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    yield CompileCounter()
    torch._dynamo.reset()


def make(cls=ours.RMSprop, **settings):
    torch.manual_seed(20261121)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)).double()
    return model, cls(model.parameters(), **settings)


def turn(model, optimizer, x):
    optimizer.zero_grad()
    loss = model(x).square().sum()
    loss.backward()
    optimizer.step()
    return 2 * loss


@pytest.mark.parametrize("settings", [{}, {"momentum": 0.9, "clip_global_norm": 1.0}])
def test_a_whole_turn_is_compiled_once_and_trains_as_if_it_were_not(counter, settings):
    (model, optimizer), (other, plain) = make(**settings), make(**settings)
    schedulers = [torch.optim.lr_scheduler.ExponentialLR(o, 0.5) for o in (optimizer, plain)]
    compiled = torch.compile(turn, backend=counter)
    generator = torch.Generator().manual_seed(0)
    for k in range(10):
        x = torch.randn(8, 4, generator=generator, dtype=torch.float64)
        assert torch.equal(compiled(model, optimizer, x), turn(other, plain, x))
        for scheduler in schedulers:
            scheduler.step()
        if k == 2:  # gradients and state are there, and the rate has changed
            graphs = counter.frame_count
            torch._dynamo.config.error_on_recompile = True
    torch._dynamo.config.error_on_recompile = False
    assert counter.frame_count == graphs
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


def test_nothing_of_a_step_is_traced(counter):
    """Also where a step makes a plan, which is all Python."""
    model, optimizer = make()

    @torch.compile(backend=counter)
    def step():
        optimizer.step()

    for k in range(6):
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        if k == 3:
            optimizer.load_state_dict(optimizer.state_dict())
        step()
    assert counter.frame_count == 0
    assert int(optimizer.state[model[0].weight]["step"]) == 6


def test_where_a_graph_must_be_whole_the_error_says_why(counter):
    _, optimizer = make()

    @torch.compile(backend=counter, fullgraph=True)
    def step():
        optimizer.step()

    with pytest.raises(torch._dynamo.exc.Unsupported) as raised:
        step()
    assert re.search("runs compiled code already|torch.compiler.disable", str(raised.value))


def test_a_step_with_a_closure(counter):
    (model, optimizer), (other, plain) = make(), make()
    x = torch.ones(3, 4, dtype=torch.float64)

    def closure_of(model, optimizer):
        def closure():
            optimizer.zero_grad()
            loss = model(x).square().sum()
            loss.backward()
            return loss

        return closure

    closure = closure_of(model, optimizer)
    step = torch.compile(lambda: optimizer.step(closure), backend=counter)
    for _ in range(3):
        assert torch.equal(step(), plain.step(closure_of(other, plain)))


def test_older_versions_of_pytorch_have_a_wrapper(monkeypatch, counter):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(torch_tensors.importlib, "import_module", missing)
    calls = []
    wrapped = torch_tensors.opaque(lambda: calls.append(torch.compiler.is_compiling()))
    compiled = torch.compile(lambda: wrapped(), backend=counter)
    compiled()
    assert calls == [False]
    assert counter.frame_count == 0

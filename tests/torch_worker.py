"""One process of a distributed run: `python torch_worker.py engine rank world folder`, started by test_torch.py."""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

import rmsfast.torch

SETTINGS = {"lr": 0.02, "alpha": 0.9, "momentum": 0.5, "centered": True, "eps": 1e-3}
STEPS = 6


def make_model():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(6, 12), torch.nn.Tanh(), torch.nn.Linear(12, 5), torch.nn.Linear(5, 1)
    ).double()


def make_data():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(12, 6, dtype=torch.float64, generator=generator)


def train(model, optimizer, x):
    for _ in range(STEPS):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def one_process():
    model = make_model()
    optimizer = rmsfast.torch.RMSprop(model.parameters(), **SETTINGS)
    train(model, optimizer, make_data())
    return model, optimizer


def elements_of_state(optimizer):
    """How many elements this process keeps, beside the step counts."""
    return sum(
        (value.to_local() if hasattr(value, "to_local") else value).numel()
        for entry in optimizer.state.values()
        for name, value in entry.items()
        if name != "step"
    )


def main(engine, rank, world, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    torch.set_num_threads(1)
    model = make_model()
    x = make_data().chunk(world)[rank]
    if engine == "fsdp":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (world,))
        for layer in (model[0], model[2], model):
            fully_shard(layer, mesh=mesh)
        optimizer = rmsfast.torch.RMSprop(model.parameters(), **SETTINGS)
        train(model, optimizer, x)
        params = [p.full_tensor() for p in model.parameters()]
        inner = optimizer
    else:
        wrapped = torch.nn.parallel.DistributedDataParallel(model)
        if engine == "zero":
            from torch.distributed.optim import ZeroRedundancyOptimizer

            optimizer = ZeroRedundancyOptimizer(model.parameters(), optimizer_class=rmsfast.torch.RMSprop, **SETTINGS)
            inner = optimizer.optim
        else:
            optimizer = inner = rmsfast.torch.RMSprop(model.parameters(), **SETTINGS)
        train(wrapped, optimizer, x)
        params = list(model.parameters())
    result = {
        "params": [p.detach().clone() for p in params],
        "elements": elements_of_state(inner),
        "native": inner._plan is not None and not inner._others,
    }
    if engine == "zero":
        optimizer.consolidate_state_dict(to=0)
        if rank == 0:
            result["state_dict"] = optimizer.state_dict()
    torch.save(result, Path(folder, f"{rank}.pt"))
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # threads of PyTorch's that still run would abort a process that ends beside them


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])

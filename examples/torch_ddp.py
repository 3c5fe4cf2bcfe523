"""Train a network in several processes with PyTorch's engine, and compare it with one process and the whole batch.

    torchrun --nproc-per-node 2 examples/torch_ddp.py

Each process has a share of every batch (`DistributedDataParallel`) and, with `ZeroRedundancyOptimizer`, a share of the
optimizer's state. Needs `pip install ".[torch]"`. One machine is enough to try it; `torchrun --nnodes` goes further.
"""

import torch
import torch.distributed as dist
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

import rmsfast.torch

SETTINGS = {"lr": 2e-3, "alpha": 0.9, "momentum": 0.5}
STEPS = 200
BATCH = 240


def make_model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.Tanh(), torch.nn.Linear(64, 64), torch.nn.Linear(64, 1))


def batches():
    """The same for all processes: points, and a function of theirs to learn."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        x = torch.randn(BATCH, 8, generator=generator)
        yield x, torch.sin(x.sum(1, keepdim=True))


def train(model, optimizer, rank=0, world=1):
    for x, y in batches():
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(x[rank::world]), y[rank::world])
        loss.backward()
        optimizer.step()
    return loss.item()


def elements(optimizer):
    """How many numbers of state a process keeps."""
    return sum(value.numel() for entry in optimizer.state.values() for value in entry.values())


def main():
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    model = make_model()
    optimizer = ZeroRedundancyOptimizer(model.parameters(), optimizer_class=rmsfast.torch.RMSprop, **SETTINGS)
    loss = train(DistributedDataParallel(model), optimizer, rank, world)

    alone = make_model()
    whole = rmsfast.torch.RMSprop(alone.parameters(), **SETTINGS)
    train(alone, whole)
    with torch.no_grad():
        difference = max((p - q).abs().max() for p, q in zip(model.parameters(), alone.parameters(), strict=True))
    shares = [None] * world
    dist.all_gather_object(shares, elements(optimizer.optim))
    if rank == 0:
        print(f"{world} processes, {STEPS} steps, loss {loss:.4f}")
        print(f"state kept by each: {', '.join(f'{share:,}' for share in shares)} numbers; by one: {elements(whole):,}")
        print(f"largest difference from one process with the whole batch: {difference:.1e}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

"""Checkpoints of sharded models (FSDP2): shards are gathered on saving and spread again on loading. Two
processes on the CPU."""

from __future__ import annotations

from latent_physics.tests.training.finetune.two_processes import run_two

CODE = """
import copy
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from latent_physics.training.loop.checkpoint import fill, fill_optimizer, gathered

torch.set_num_threads(1)
dist.init_process_group("gloo")
main = dist.get_rank() == 0


def build(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    return model, torch.optim.AdamW(model.parameters(), lr=0.1)


def step(model, optimizer):
    torch.manual_seed(7)
    model(torch.randn(3, 6)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def everything(model, optimizer):
    state = optimizer.state_dict()["state"]
    moments = {f"{index}/{key}": value for index, values in state.items() for key, value in values.items()}
    return gathered({"model": dict(model.named_parameters()), "optimizer": moments}, main)


one, first = build(0)
step(one, first)
saved = [everything(one, first)]
assert bool(saved[0]) == main
if main:
    assert saved[0]["model/0.weight"].shape == saved[0]["optimizer/0/exp_avg"].shape == (5, 6)
dist.broadcast_object_list(saved)
parts = {"model": {}, "optimizer": {}}
for key, value in saved[0].items():
    name, rest = key.split("/", 1)
    parts[name][rest] = value
two, second = build(1)
fill(dict(two.named_parameters()), parts["model"], Path("checkpoint"))
fill_optimizer(second, parts["optimizer"], copy.deepcopy(first.state_dict()["param_groups"]))
step(one, first)
step(two, second)
ours, theirs = everything(one, first), everything(two, second)
assert ours.keys() == theirs.keys()
assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
print(f"process {dist.get_rank()} of {dist.get_world_size()}\\n", end="", flush=True)
dist.destroy_process_group()
"""


def test_shards_are_gathered_and_spread_again(tmp_path):
    said = run_two(tmp_path / "two.py", CODE)
    assert said.count("of 2") == 2, said  # both wrote; their lines may be mixed

"""Patched models under DDP or FSDP2 in one of two processes, for test_distributed.py.

Run as `python two_processes.py KIND RANK FOLDER`; rank 0 saves what came out to FOLDER/result.pt.
"""

import datetime
import os
import sys

import tiny_vit
import torch
import torch.distributed as dist
from random_encodings import randomize_encodings
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import posenc

RANKS = 2
BATCH = 4
CASES = {
    "irpe": ("irpe", {}, {}),
    "irpe qkv": ("irpe", {"on": "qkv"}, {}),
    "irpe shared": ("irpe", {"share": True}, {}),
    "human_part": ("human_part", {}, {}),
    "human_part no prefix": ("human_part", {}, {"prefix": 0}),
    "human_part shared": ("human_part", {"share": True}, {}),
    "swin": ("swin", {"prefix_pairs": "separate"}, {}),
    "quadratic": ("quadratic", {"strength": 0.0}, {}),
    "learned": ("learned", {"absolute": "hide"}, {}),
    "sinusoidal": ("sinusoidal", {"strength": 0.0}, {}),
    "peg+swin": ("peg+swin", {"share": True}, {}),
}


def patched(case):
    encoding, options, vit = CASES[case]
    # The mean of all tokens: from a CLS token alone some tables of the last block get no gradient.
    vit = {"global_pool": "avg", "pool_include_prefix": True, **vit}
    model = posenc.patch_model(tiny_vit.vit(**vit), encoding, **options)
    return randomize_encodings(model, seed=1).train()


def images(model, rank=None):
    """The whole batch, or the part of one process."""
    x = tiny_vit.images(model, BATCH)
    return x if rank is None else x.chunk(RANKS)[rank]


def train(model, x, steps=2):
    """Gradients of each step; DDP notices in the second that one was missing in the first."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    history = []
    for _ in range(steps):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
        history.append({n: full(p.grad) for n, p in model.named_parameters() if p.grad is not None})
        optimizer.step()
    return history


def full(tensor):
    """The whole of a sharded tensor."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor.detach().clone()


def evaluate(model, x):
    """Twice: the second time static biases are remembered."""
    model.eval()
    with torch.no_grad():
        outputs = [model(x), model(x)]
    model.train()
    return outputs


def alone(case):
    """What one process gets on the whole batch."""
    model = patched(case)
    before = evaluate(model, images(model))
    gradients = train(model, images(model))
    after = evaluate(model, images(model))
    return {"gradients": gradients, "state": model.state_dict(), "outputs": before + after}


def ddp(case, rank):
    model = patched(case)
    wrapped = DistributedDataParallel(model)  # find_unused_parameters=False
    before = evaluate(wrapped, images(model))
    gradients = train(wrapped, images(model, rank))
    gradients = [{n.removeprefix("module."): g for n, g in step.items()} for step in gradients]
    after = evaluate(wrapped, images(model))
    return {"gradients": gradients, "state": model.state_dict(), "outputs": before + after}


def fsdp(case, rank):
    model = patched(case)
    mesh = dist.init_device_mesh("cpu", (RANKS,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    # Or torch keeps what an evaluation gathered, and trains with it after the next step.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    before = evaluate(model, images(model))
    gradients = train(model, images(model, rank))
    after = evaluate(model, images(model))
    # The sharded state loads into the sharded model.
    state = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    model.load_state_dict(state)
    after += evaluate(model, images(model))
    whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    return {
        "gradients": gradients,
        "sharded keys": list(state),
        "state": whole,
        "outputs": before + after,
        "parameters": [name for name, _ in posenc.encoding_parameters(model)],
    }


def main(kind, rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=RANKS,
        timeout=datetime.timedelta(seconds=60),
    )
    results = {case: {"ddp": ddp, "fsdp": fsdp}[kind](case, rank) for case in CASES}
    if rank == 0:
        torch.save(results, os.path.join(folder, "result.pt"))
    dist.barrier()
    dist.destroy_process_group()
    # Everything is saved. In a usual exit gloo's threads were once seen to abort the process
    # ("terminate called without an active exception").
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])

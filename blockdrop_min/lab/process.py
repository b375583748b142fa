"""The run as a process: its device, its arithmetic, and its part of the work under torchrun.

Data-parallel training, `torchrun --nproc_per_node=N train.py ...`: every process takes its part of
each batch, with random numbers of its own. Gradients are averaged over the images of the whole
batch, so all processes hold the same bits after every step. BatchNorm in training mode sees the
images of its process, as in DistributedDataParallel; its running statistics are averaged. Rewards
and advantages are per image and need nothing. All validate; the first alone prints and writes.
"""

import os
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous


def choose_device(name):
    """The device by its name: auto, cpu, cuda, cuda:1, ...; each process of torchrun has its own.

    Raises ValueError if it is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and under_torchrun():
        # Before the first tensor, which would open a context on GPU 0.
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        return torch.zeros(0, device=name).device
    except (RuntimeError, AssertionError, ImportError) as problem:
        reason = f"{str(problem).splitlines()[0]}; there are {torch.cuda.device_count()} GPUs"
        raise ValueError(f"--device is {name!r}, which cannot be used ({reason})") from None


def has_bfloat16(device):
    """Whether the device has instructions for bfloat16; without them it is the slower choice."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    able = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return bool(able.get("avx512_bf16") or able.get("amx_bf16") or able.get("bf16"))


# Several processes


def under_torchrun():
    """Whether torchrun has started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


@contextmanager
def team(device):
    """Joins the processes that torchrun has started, if it has."""
    if not under_torchrun():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store, number, count = next(rendezvous("env://"))
    # torchrun's store outlives a restart, and with it the addresses of processes that are dead.
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)
    store = dist.PrefixStore(f"start {start}", store)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=number, world_size=count)
    try:
        yield
    finally:
        dist.destroy_process_group()


def processes():
    """How many processes there are: 1 without torchrun."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank():
    """Which of them this is, from 0."""
    return dist.get_rank() if processes() > 1 else 0


def check_alike(*place):
    """ValueError in all processes unless they give equal values: each must see the same files."""
    places = [None] * processes()
    if processes() > 1:
        dist.all_gather_object(places, place)
    if len(set(places)) > 1:
        differ = "; ".join(sorted(", ".join(map(str, other)) for other in set(places)))
        advice = "give them all the same files and settings"
        raise ValueError(f"the processes stand at different places ({differ}); {advice}")


@contextmanager
def first_alone():
    """Process 0 runs the block before the others do: what it downloads is there for them."""
    if rank() > 0:
        dist.barrier()
    try:
        yield
    finally:
        if rank() == 0 < processes() - 1:
            dist.barrier()


def my_part(count):
    """The slice of a batch of `count` images that is this process's."""
    return slice(count * rank() // processes(), count * (rank() + 1) // processes())


def total(values):
    """The sum of a tensor over all processes."""
    if processes() > 1:
        dist.all_reduce(values)
    return values


def average_gradients(model, weight):
    """Makes the gradients those of the whole batch, and BatchNorm's running statistics the mean.

    A parameter without a gradient in any process stays without.

    weight: the fraction of the batch's images that this process has.
    """
    if processes() == 1:
        return
    learning = [p for p in model.parameters() if p.requires_grad]
    met = torch.tensor([float(p.grad is not None) for p in learning], device=learning[0].device)
    for p, somewhere in zip(learning, total(met).tolist(), strict=True):
        if somewhere:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad.mul_(weight)
            total(p.grad)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d) and module.training:
            total(module.running_mean.div_(processes()))
            total(module.running_var.div_(processes()))

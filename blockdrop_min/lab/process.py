"""The run as a process: its signals, the lock on its folder, and its share of the work when torchrun starts several.

Data-parallel training, `torchrun --nproc_per_node=N train.py ...`: every process takes its share of each batch, and draws
the random numbers that one process alone would draw for those images (on a GPU, others). Gradients are averaged over the
images of the whole batch, so that a step is that of one process. BatchNorm in training mode sees the images of its process,
as in DistributedDataParallel; its running statistics are averaged after every step. Rewards and advantages are per image and
need nothing. All processes hold the same bits after every step; all validate, and the first alone prints and writes.
"""

import os
import signal
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.rendezvous import rendezvous

try:
    import fcntl
except ImportError:  # Windows: a folder is not locked
    fcntl = None


@contextmanager
def locked(folder):
    """Keeps other runs from writing to this folder. The system frees the lock of a process that is dead.

    Raises ValueError if another process holds it.
    """
    with open(folder / ".lock", "w") as file:
        try:
            if fcntl and rank() == 0:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another run is writing to {folder}; wait for its end, or use another --out"
            ) from None
        yield


class Stop(Exception):
    """The run was asked to stop by a signal; `code` is the exit code."""

    def __init__(self, number):
        self.code = 128 + number


@contextmanager
def signals():
    """Notes the first SIGINT or SIGTERM in the list that it gives, so that a step can end; a second one stops at once."""
    asked = []

    def note(number, frame):
        if (
            asked and processes() == 1
        ):  # torchrun passes Ctrl-C on, so that its processes get it twice
            raise KeyboardInterrupt
        asked.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# Several processes


@contextmanager
def team(device):
    """Joins the processes that torchrun has started, if it has, and gives this one's device."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    store, number, count = next(rendezvous("env://"))
    # torchrun's store outlives a restart, and with it the addresses of processes that are dead.
    store = dist.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo", store=store, rank=number, world_size=count
    )
    try:
        yield device
    finally:
        dist.destroy_process_group()


def processes():
    """How many processes there are: 1 without torchrun."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank():
    """Which of them this is, from 0."""
    return dist.get_rank() if processes() > 1 else 0


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


def share(total):
    """The images of a batch of `total` that are this process's: a slice."""
    return slice(total * rank() // processes(), total * (rank() + 1) // processes())


def skip(generator, images, numbers):
    """The generator after the random numbers of so many images: those that the processes before this one draw.

    A GPU's cannot be moved on by a count, so there each process gets a generator of its own.
    """
    if generator.device.type == "cuda":
        return generator.manual_seed(generator.initial_seed() + images)
    torch.rand(images, numbers, generator=generator, device=generator.device)
    return generator


def total(values):
    """The sum over all processes of a tensor [n]."""
    if processes() > 1:
        dist.all_reduce(values)
    return values


def average(model, weight):
    """Makes the gradients those of the whole batch, and BatchNorm's running statistics the mean over the processes.

    weight: this process's share of the batch's images. A parameter without a gradient in any process stays without.
    """
    if processes() == 1:
        return
    learning = [p for p in model.parameters() if p.requires_grad]
    norms = [
        module
        for module in model.modules()
        if isinstance(module, nn.BatchNorm2d) and module.training
    ]
    statistics = [buffer for norm in norms for buffer in (norm.running_mean, norm.running_var)]
    has = torch.tensor(
        [p.grad is not None for p in learning], dtype=torch.float32, device=learning[0].device
    )
    parts = [torch.zeros_like(p) if p.grad is None else weight * p.grad for p in learning]
    parts += [buffer / processes() for buffer in statistics]
    *parts, has = total(torch.cat([t.flatten() for t in [*parts, has]])).split(
        [t.numel() for t in [*parts, has]]
    )
    for p, gradient, any_has in zip(learning, parts, has.tolist(), strict=False):
        p.grad = gradient.view_as(p).clone(memory_format=torch.preserve_format) if any_has else None
    for buffer, mean in zip(statistics, parts[len(learning) :], strict=True):
        buffer.copy_(mean)

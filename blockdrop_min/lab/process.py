"""The run as a process: its device, its signals, and its part of the work under torchrun.

Data-parallel training, `torchrun --nproc_per_node=N train.py ...`: every process takes its part of
each batch, and draws the random numbers that one process alone would draw for those images (on a
GPU, others). Gradients are averaged over the images of the whole batch, so that a step is that of
one process. BatchNorm in training mode sees the images of its process, as in
DistributedDataParallel; its running statistics are averaged after every step. Rewards and
advantages are per image and need nothing. All processes hold the same bits after every step; all
validate, and the first alone prints and writes.
"""

import os
import signal
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.rendezvous import rendezvous

DEVICES = ("cpu", "cuda", "mps", "xpu")


class Stop(Exception):
    """The run was asked to stop by a signal; `code` is the exit code."""

    def __init__(self, number):
        self.code = 128 + number


@contextmanager
def stop_signals():
    """Notes SIGINT and SIGTERM in the list that it yields, so that a step can end.

    A second one stops at once.
    """
    received = []

    def note(number, frame):
        # torchrun passes Ctrl-C on, so that its processes get it twice.
        if received and processes() == 1:
            raise KeyboardInterrupt
        received.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_if_asked(received, device):
    """Raises `Stop` in all processes if any has received a signal."""
    stops = len(received)
    if processes() > 1:
        stops = total(torch.tensor(stops, device=device)).item()
    if stops:
        raise Stop(received[0] if received else signal.SIGTERM)


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
        if name.partition(":")[0] not in DEVICES:
            raise ValueError(f"--device is {name!r}; choose auto or one of {', '.join(DEVICES)}")
        device = torch.device(name)
        count = torch.cuda.device_count() if device.type == "cuda" else 1
        if (device.index or 0) >= count:
            there = f"this machine has {count} GPU(s)"
            advice = "start as many processes" if under_torchrun() else "use another"
            raise ValueError(f"--device is {name!r}, but {there}; {advice}")
        return torch.zeros(0, device=device).device
    except (RuntimeError, AssertionError) as problem:
        reason = str(problem).splitlines()[0]
        raise ValueError(f"--device is {name!r}, which cannot be used: {reason}") from None


def out_of_memory(problem):
    """One line of advice if this error says that memory does not suffice, or None."""
    text = str(problem).lower()
    if isinstance(problem, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in text:
        return "the memory does not suffice; try a smaller batch (--finetune-batch, ...) or --depth"
    if "dataloader worker" in text:  # raised wherever this process is when a worker is killed
        return "a process that reads images was killed; use --workers 0, or a smaller batch"
    return None


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
    backend = "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
        backend = "nccl"
    store, number, count = next(rendezvous("env://"))
    # torchrun's store outlives a restart, and with it the addresses of processes that are dead.
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)
    store = dist.PrefixStore(f"start {start}", store)
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


def skip(generator, images, numbers):
    """The generator after `numbers` random numbers for each of so many images.

    Those are what the processes before this one draw. A GPU's generator cannot be moved on by a
    count, so there each process gets one of its own.
    """
    if generator.device.type == "cuda":
        return generator.manual_seed(generator.initial_seed() + images)
    torch.rand(images, numbers, generator=generator, device=generator.device)
    return generator


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
    has_gradient = [float(p.grad is not None) for p in learning]
    has_gradient = total(torch.tensor(has_gradient, device=learning[0].device)).tolist()
    for p, somewhere in zip(learning, has_gradient, strict=True):
        if somewhere:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad.mul_(weight)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d) and m.training]
    statistics = [buffer for m in norms for buffer in (m.running_mean, m.running_var)]
    for buffer in statistics:
        buffer.div_(processes())
    tensors = [p.grad for p in learning if p.grad is not None] + statistics
    summed = total(torch.cat([t.flatten() for t in tensors]))
    for tensor, part in zip(tensors, summed.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))

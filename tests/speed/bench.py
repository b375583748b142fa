"""Wall-clock time: is BlockDrop as much faster than the full network as its FLOPs say? `python evaluate.py --bench`

The variants of a batch size take turns, round after round, in one process, so that whatever else the machine does hits all
alike; medians over the rounds. The full network gets every optimisation that BlockDrop gets.
"""

import ctypes
import itertools
import math
import platform
import statistics
import time
from pathlib import Path

import torch
from rich.table import Table

from .data import centre_crop, seeded
from .folding import fast, piece_size
from ..blockdrop import BlockDrop
from ..policy_net import greedy, policy_net
from .evaluation import flops_under
from ..masked_resnet import resnet

DRAWS = 7  # batches that a variant meets in turn


def synthetic_policies(count, num_blocks, keep, generator):
    """Random policies [count, K] of `keep` blocks each; if that is no integer, of the one below or above, `keep` on average."""
    if not 0 <= keep <= num_blocks:
        raise ValueError(f"--keep is {keep}; it must lie between 0 and the number of blocks, {num_blocks}")
    kept = int(keep) + (torch.rand(count, 1, generator=generator) < keep % 1).int()
    return (torch.rand(count, num_blocks, generator=generator).argsort(1).argsort(1) < kept).float()


def synthetic_batches(model, size, side, keep):
    """DRAWS batches (x [size, 3, side, side], prepared, and u [size, K]) of random images and random policies."""
    generator, device, K = seeded("bench"), model.mean.device, model.resnet.num_blocks
    x = torch.randn(DRAWS, size, 3, side, side, generator=generator).to(device)
    return [(model.prepare(part), synthetic_policies(size, K, keep, generator).to(device)) for part in x]


def run_batches(model, size, data):
    """The same of test images and the policies that the model gives them."""
    order = torch.randint(len(data.test), (DRAWS * size,), generator=seeded("bench"))
    prepared = [model.prepare(centre_crop(x, data.crop)) for x, _ in data.test.batches(size, order)]
    return [(x, greedy(model.policy(x), model.threshold)) for x in prepared]


def untrained(depth, family):
    """A `BlockDrop` with random weights, its policy network the demo's on small images, the paper's on large ones."""
    torch.manual_seed(0)
    net = resnet(depth, 10 if family == "cifar" else 1000, family)
    return BlockDrop(net, policy_net(net.num_blocks, family, *((8, True) if family == "cifar" else ()))).eval()


def take_turns(variants, device, seconds):
    """name -> [rounds] seconds of each round. variants: name -> function; all run once before, and then in turns."""

    def timed(run):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    for run in variants.values():
        timed(run)
    times, begun = {name: [] for name in variants}, time.perf_counter()
    while min(map(len, times.values())) < 3 or time.perf_counter() - begun < seconds:
        for name, run in variants.items():
            times[name].append(timed(run))
    return times


def peak_memory(run, device):
    """MiB that a call needs beyond what is there before it: of the GPU, or of the process (Linux; elsewhere NaN)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    try:
        ctypes.CDLL(None).malloc_trim(0)  # hands back what is free
        Path("/proc/self/clear_refs").write_text("5")  # sets the peak to what is there now
        before, _ = resident(), run()
        return resident() - before
    except (OSError, AttributeError, TypeError):
        return math.nan


def resident():
    """The most MiB of memory that the process has had."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 2**10


def full_network(net):
    """All blocks and nothing else, which is what torch.compile understands best: a function [B, 3, H, W] -> logits."""

    def run(x):
        x = net.stem(x)
        for block in net.blocks:
            x = (block.shortcut(x) + block.residual(x)).relu()
        return net.head(x)

    return run


def measure(model, batches, seconds, with_compile=True):
    """One batch size: a dict of numbers. batches: [(x prepared, u)]; the policy network runs, and u is taken for its answer.

    speedup: over the fastest full network, median over the rounds, with quartiles.    limit: what FLOPs would give.
    """
    quick, turn, device, size = fast(model), itertools.count(), batches[0][0].device, len(batches[0][0])

    def full(net):
        return lambda: net(batches[next(turn) % DRAWS][0])

    def both(pair, **execute):
        return lambda x, u: (pair.policy(x), pair.resnet(x, u, **execute))

    def blockdrop(run):
        return lambda: run(*batches[next(turn) % DRAWS])

    variants = {"full": full(model.resnet), "full, fast": full(quick.resnet)}
    if with_compile:
        compiled = torch.compile(full_network(quick.resnet.net))
        variants["full, compiled"] = full(lambda x: torch.cat([compiled(piece) for piece in x.split(piece_size(x))]))
    variants |= {name: blockdrop(both(model, execute=name)) for name in ("masked", "sparse")}
    variants["fast"] = blockdrop(both(quick))
    times = take_turns(variants, device, seconds)
    speed = {name: size / statistics.median(series) for name, series in times.items()}
    best = max((name for name in speed if name.startswith("full")), key=speed.get)
    ratios = [a / b for a, b in zip(times[best], times["fast"], strict=True)]
    low, speedup, high = statistics.quantiles(ratios, n=4, method="inclusive")
    flops, flops_full = flops_under(model, torch.cat([u for _, u in batches]), batches[0][0].shape[2:])
    limit = flops_full / flops.mean().item()
    return {
        "batch": size, "rounds": len(ratios), "best full": best, "speedup": speedup, "quartiles": [low, high], "limit": limit,
        "quotient": speedup / limit, "images/s": speed,
        "MiB": {name: peak_memory(run, device) for name, run in variants.items()},
    }  # fmt: skip


def hardware(device):
    """The device by name, with the number of threads on a CPU."""
    info = Path("/proc/cpuinfo")
    names = [line.split(": ")[1] for line in info.read_text().splitlines() if "model name" in line] if info.exists() else []
    name = torch.cuda.get_device_name() if device.type == "cuda" else [*names, platform.processor()][0]
    return f"{name}, {torch.get_num_threads()} thread(s), torch {torch.__version__}"


@torch.inference_mode()
def bench(options, device, console, run=None):
    """`evaluate.py --bench`: measures, prints, and gives what --json writes. Raises ValueError on bad options.

    run: (model, data) of a trained run; None for an untrained network with random policies, as the options say.
    """
    sizes = options.batches or [1, 8, 64, 256, *([1024] if device.type == "cuda" else [])]
    if min(sizes) < 1 or not options.seconds >= 0 or (options.image_size is not None and options.image_size < 1):
        raise ValueError("--batches and --image-size must be at least 1, and --seconds at least 0")
    model = run[0] if run else untrained(options.depth, options.family).to(device, memory_format=torch.channels_last)
    K, side = model.resnet.num_blocks, options.image_size or (32 if options.family == "cifar" else 224)
    keep = K / 2 if options.keep is None else options.keep
    untold = f"ResNet-{options.depth}, untrained, {keep:g} of {K} blocks kept, random per image"
    found = {"hardware": hardware(device), "subject": f"{options.runs[0]}, its own policies" if run else untold, "rows": []}
    for size in sizes:
        batches = run_batches(model, size, run[1]) if run else synthetic_batches(model, size, side, keep)
        found["rows"].append(measure(model, batches, options.seconds, not options.no_compile))
    shown = Table(title=f"{found['subject']}; {found['hardware']}; images/s")
    for heading in ("batch", *found["rows"][0]["images/s"], "speed-up", "quartiles", "limit", "quotient", "MiB full / fast"):
        shown.add_column(heading, justify="right")
    for row in found["rows"]:
        speeds = (f"{speed:.{1 + (speed < 10)}f}" for speed in row["images/s"].values())
        low, high = row["quartiles"]
        shown.add_row(str(row["batch"]), *speeds, f"{row['speedup']:.2f}", f"{low:.2f}-{high:.2f}", f"{row['limit']:.2f}",
                      f"{row['quotient']:.2f}", f"{row['MiB'][row['best full']]:.0f} / {row['MiB']['fast']:.0f}")  # fmt: skip
    console.print(shown)
    return found

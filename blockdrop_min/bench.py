"""Wall-clock time: is BlockDrop as much faster than the full network as its FLOPs say? `python evaluate.py --bench`

The variants of a batch size take turns, round after round, in one process, so that whatever else the machine does hits all
alike; medians over the rounds. The full network gets every optimisation that BlockDrop gets.
"""

import copy
import ctypes
import functools
import itertools
import math
import platform
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import nn

from .checkpoint import read, restore
from .cost import policy_cost, resnet_cost
from .curriculum import force_on
from .data import centre_crop, load_data, seeded
from .fast import PIECE, fast
from .model import BlockDrop, FixedPolicy
from .policy import bound, entropy, greedy, policy_loss, policy_net, sample
from .resnet import resnet
from .reward import reward
from .settings import Settings
from .training import policy_step, set_mode

DRAWS = 8  # batches of policies that a variant meets in turn


def synthetic_policies(count, num_blocks, keep, generator):
    """Random policies [count, K] of `keep` blocks each; if that is no integer, of the one below or above, `keep` on average."""
    if not 0 <= keep <= num_blocks:
        raise ValueError(f"--keep is {keep}; it must lie between 0 and the number of blocks, {num_blocks}")
    kept = int(keep) + (torch.rand(count, 1, generator=generator) < keep % 1).int()
    return (torch.rand(count, num_blocks, generator=generator).argsort(1).argsort(1) < kept).float()


def untrained(depth, family):
    """A ResNet with random weights, and the policy network that the presets give it."""
    torch.manual_seed(0)
    net = resnet(depth, 10 if family == "cifar" else 1000, family)
    policy = policy_net(net.num_blocks, family, *((8, True) if family == "cifar" else ()))
    return BlockDrop(net, policy).eval()


def take_turns(variants, device, seconds, least=3):
    """name -> [rounds] seconds of each round. variants: name -> function; all run once before, and then in turns."""
    times, begun = {name: [] for name in variants}, math.inf
    while min(map(len, times.values())) <= least or time.perf_counter() - begun < seconds:
        for name, run in variants.items():
            start = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - start)
        begun = min(begun, time.perf_counter())
    return {name: series[1:] for name, series in times.items()}


def peak_memory(run, device):
    """MiB that a call needs beyond what is there before it: of the GPU, or of the process (Linux; elsewhere NaN)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    def highest():
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 2**10

    try:
        ctypes.CDLL(None).malloc_trim(0)  # gives back what was freed before; then the peak is set to what is left
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        return math.nan
    before = highest()
    run()
    return highest() - before


def plain(net):
    """The full network and nothing else, which is what torch.compile understands best."""

    def run(x):
        x = net.stem(x)
        for block in net.blocks:
            x = (block.shortcut(x) + block.residual(x)).relu()
        return net.head(x)

    return run


@torch.inference_mode()
def inference(model, batches, side, size, seconds, with_compile=True):
    """Measures one batch size: a dict of numbers. batches: size -> [(x prepared, u)]; the policy network runs; u is taken.

    speedup: over the fastest full network, median over the rounds, with quartiles.    limit: what FLOPs would give.
    """
    quick, turn = fast(model), itertools.count()
    drawn, cost = batches(size), resnet_cost(model.resnet, side)

    def full(net):
        return lambda: net(drawn[next(turn) % DRAWS][0])

    def blockdrop(pair, **execute):
        def run():
            x, u = drawn[next(turn) % DRAWS]
            pair.policy(x)
            pair.resnet(x, u, **execute)

        return run

    variants = {"full": full(model.resnet), "full, fast": full(quick.resnet)}
    if with_compile:
        compiled = torch.compile(plain(quick.resnet.net))
        variants["full, compiled"] = full(lambda x: torch.cat([compiled(piece) for piece in x.split(PIECE)]))
    variants["masked"], variants["sparse"] = blockdrop(model, execute="masked"), blockdrop(model, execute="sparse")
    variants["fast"] = blockdrop(quick)
    times = take_turns(variants, drawn[0][0].device, seconds)
    best = min((name for name in times if name.startswith("full")), key=lambda name: statistics.median(times[name]))
    ratios = sorted(a / b for a, b in zip(times[best], times["fast"], strict=True))
    low, speedup, high = statistics.quantiles(ratios, n=4, method="inclusive")
    looks = 0 if isinstance(model.policy, FixedPolicy) else policy_cost(model.policy, side)
    limit = cost.full / (torch.cat([cost.of(u) for _, u in drawn]).mean().item() + looks)
    return {
        "batch": size, "rounds": len(ratios), "best full": best, "speedup": speedup, "quartiles": [low, high], "limit": limit,
        "quotient": speedup / limit, "images/s": {name: size / statistics.median(series) for name, series in times.items()},
        "MiB": {name: peak_memory(variants[name], drawn[0][0].device) for name in ("full, fast", "fast")},
    }  # fmt: skip


# Training


class Drawn(nn.Module):
    """A policy network that runs, and says what `u` says: it keeps with 0.95 or with 0.05."""

    def __init__(self, policy, u):
        super().__init__()
        self.policy, self.u, self.num_blocks = policy, u, policy.num_blocks

    def forward(self, x):
        return 0.05 + 0.9 * self.u + 0 * self.policy(x)


def authors_step(model, x, y, free, alpha, beta, gamma, generator, joint=False):
    """A training step as the authors wrote it: every block on every image, times 0 or 1, for both policies."""

    def dense(u):
        maps = model.resnet.stem(x)
        for block, keep in zip(model.resnet.blocks, u.T[:, :, None, None, None], strict=True):
            shortcut = block.shortcut(maps)
            maps = keep * (shortcut + block.residual(maps)).relu() + (1 - keep) * shortcut
        return model.resnet.head(maps)

    s = model.policy(x)
    s_bounded = bound(s, alpha)
    u, u_greedy = force_on(sample(s_bounded, generator), free), force_on(greedy(s.detach()), free)
    with torch.set_grad_enabled(joint):
        logits = dense(u)
    with torch.no_grad():
        A = reward(u, logits.argmax(1) == y, gamma) - reward(u_greedy, dense(u_greedy).argmax(1) == y, gamma)
    loss = policy_loss(s_bounded, u, A, free) - beta * entropy(s_bounded, free)
    return loss + F.cross_entropy(logits, y) if joint else loss, {}


def training(model, u, side, seconds):
    """Images/s of training steps on random images, the authors' and ours: {stage: {whose: number}}.

    u: [B, K], what the policy ends with. The curriculum's number is over four moments, evenly spaced, of handing it the blocks.
    """
    (B, K), x, y = u.shape, torch.randn(len(u), 3, side, side, device=u.device), torch.arange(len(u), device=u.device) % 10
    theirs = BlockDrop(model.resnet, Drawn(model.policy, u)).to(memory_format=torch.contiguous_format)
    ours, found = copy.deepcopy(theirs).to(memory_format=torch.channels_last), {}

    def run(step, pair, images, free, stage):
        set_mode(pair, stage)
        pair.zero_grad()
        step(pair, images, y, free, 0.8, 0.1, 2.0, seeded(0, device=x.device), joint=stage == "finetune")[0].backward()

    for stage, shares in {"curriculum": (1 / 8, 3 / 8, 5 / 8, 7 / 8), "finetune": (1.0,)}.items():
        took = {"authors'": 0.0, "ours": 0.0}
        for share in shares:
            rest = torch.arange(K) >= K - round(share * K), stage
            steps = {"authors'": functools.partial(run, authors_step, theirs, x, *rest),
                     "ours": functools.partial(run, policy_step, ours, ours.prepare(x), *rest)}  # fmt: skip
            for name, series in take_turns(steps, x.device, seconds / len(shares)).items():
                took[name] += statistics.median(series)
        found[stage] = {name: B * len(shares) / total for name, total in took.items()}
    return found


# What is printed


def hardware(device):
    """The device by name, with the number of threads on a CPU."""
    info = Path("/proc/cpuinfo")
    names = [line.split(": ")[1] for line in info.read_text().splitlines() if "model name" in line] if info.exists() else []
    name = torch.cuda.get_device_name() if device.type == "cuda" else [*names, platform.processor()][0]
    return f"{name}, {torch.get_num_threads()} thread(s), torch {torch.__version__}"


def table(rows, title):
    """The rows of `inference`, a line for each batch size."""
    shown = Table(*(["batch", *rows[0]["images/s"], "speed-up", "limit", "quotient", "MiB full", "fast"]), title=title)
    for row in rows:
        numbers = [*row["images/s"].values(), row["speedup"], row["limit"], row["quotient"], *row["MiB"].values()]
        shown.add_row(str(row["batch"]), *(f"{number:.{1 + (number < 10)}f}" for number in numbers))
    return shown


def batches_of_run(model, settings, data_dir):
    """A function size -> DRAWS batches (x prepared, u) of test images, with the policies that the model gives them."""
    data = load_data(settings.data, data_dir or settings.data_dir, settings.image_size, settings.train_images,
                     settings.val_images, with_test=True).to(model.mean.device)  # fmt: skip

    def batches(size):
        order = torch.randint(len(data.test), (DRAWS * size,), generator=seeded("bench"))
        prepared = [model.prepare(centre_crop(x, data.crop)) for x, _ in data.test.batches(size, order)]
        return [(x, greedy(model.policy(x), model.threshold)) for x in prepared]

    return batches, data.crop


def batches_drawn(model, side, keep):
    """The same of random images and random policies that keep `keep` blocks."""
    generator, K = seeded("bench"), model.resnet.num_blocks
    synthetic_policies(1, K, keep, generator)  # raises ValueError at once

    def batches(size):
        x = torch.randn(DRAWS, size, 3, side, side, generator=generator).to(model.mean.device)
        return [(model.prepare(part), synthetic_policies(size, K, keep, generator).to(part.device)) for part in x]

    return batches, side


def bench(options, device, console):
    """`evaluate.py --bench`: measures, prints, and gives what --json writes. Raises ValueError on bad options."""
    sizes = options.batches or ([64] if options.train else [1, 8, 64, 256, *([1024] if device.type == "cuda" else [])])
    if min(sizes) < 1 or not options.seconds >= 0 or (options.image_size is not None and options.image_size < 1):
        raise ValueError("--batches and --image-size must be at least 1, and --seconds at least 0")
    if len(options.runs) > 1:
        raise ValueError(f"--bench measures one run, not {len(options.runs)}")
    if options.runs:
        state = read(options.runs[0])
        name, model = f"{options.runs[0]}, its own policies", restore(state, options.runs[0])
        model = model.to(device, memory_format=torch.channels_last)
        batches, side = batches_of_run(model, Settings(**state["settings"]), options.data_dir)
    else:
        model = untrained(options.depth, options.family).to(device, memory_format=torch.channels_last)
        K = model.resnet.num_blocks
        keep = K / 2 if options.keep is None else options.keep
        name = f"ResNet-{options.depth}, untrained, {keep:g} of {K} blocks kept, random per image"
        batches, side = batches_drawn(model, options.image_size or (32 if options.family == "cifar" else 224), keep)
    found, title = {"hardware": hardware(device), "subject": name}, f"{name}; {hardware(device)}"
    if options.train:
        found |= {"batch": sizes[0], "training": training(model, batches(sizes[0])[0][1], side, options.seconds)}
        for stage, speed in found["training"].items():
            ours, theirs = speed["ours"], speed["authors'"]
            console.print(f"{stage}, batch {sizes[0]}: {ours:.1f} images/s, authors' step {theirs:.1f}: x {ours / theirs:.2f}")
        console.print(title)
        return found
    found["rows"] = []
    for size in sizes:
        row = inference(model, batches, side, size, options.seconds, not options.no_compile)
        found["rows"].append(row)
        low, high = row["quartiles"]
        console.print(f"batch {size}: x {row['speedup']:.2f} (quartiles {low:.2f} to {high:.2f}) of at most {row['limit']:.2f}")
    console.print(table(found["rows"], title))
    return found

"""Wall-clock time: is BlockDrop as much faster than the full network as its FLOPs say?

`python tests/speed/bench.py --depth 110 --keep 17` measures an untrained network under random
policies, `python tests/speed/bench.py RUN` a trained one under its own. The variants of a batch
size take turns on the same images in one process, so that whatever else the machine does hits all
alike; medians over the rounds. The full network gets every optimisation that BlockDrop gets.
"""

import copy
import ctypes
import functools
import itertools
import json
import math
import os
import platform
import statistics
import sys
import time
from pathlib import Path

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[2]))

from blockdrop_min import BlockDrop, fast, policy_net, resnet
from blockdrop_min.lab.checkpoint import read, restore
from blockdrop_min.lab.data import centre_crop, load_data, seeded
from blockdrop_min.lab.evaluation import flops_under
from blockdrop_min.lab.log import safe_console
from blockdrop_min.lab.process import choose_device, out_of_memory
from blockdrop_min.lab.settings import Parser, Settings
from blockdrop_min.policy_network import greedy

DRAWS = 7  # batches that the variants meet in turn
DTYPES = ("fp32", "tf32", "bf16")


def random_policies(count, num_blocks, keep, generator):
    """Random policies u [count, K] that keep `keep` blocks each.

    If that is no integer: the one below or above it, and `keep` on average.
    """
    if not 0 <= keep <= num_blocks:
        raise ValueError(f"--keep is {keep}; it must lie between 0 and {num_blocks}, the blocks")
    kept = int(keep) + (torch.rand(count, 1, generator=generator) < keep % 1).int()
    rank = torch.rand(count, num_blocks, generator=generator).argsort(1).argsort(1)
    return (rank < kept).float()


def random_batches(model, size, side, keep):
    """DRAWS batches of random images, prepared, and random policies: [(x, u)]."""
    generator = seeded("bench")
    batches = []
    for _ in range(DRAWS):
        x = torch.rand(size, 3, side, side, generator=generator).to(model.mean.device)
        u = random_policies(size, model.resnet.num_blocks, keep, generator)
        batches.append((model.prepare(x), u.to(x.device)))
    return batches


def run_batches(model, size, data):
    """The same of test images, and the policies that the model gives them."""
    order = torch.randint(len(data.test), (DRAWS * size,), generator=seeded("bench"))
    batches = []
    for x, _ in data.test.batches(size, order):
        x = model.prepare(centre_crop(x, data.crop))
        batches.append((x, greedy(model.policy(x))))
    return batches


def untrained(depth, family):
    """A `BlockDrop` with random weights; its policy network is the demo's, or the paper's."""
    torch.manual_seed(0)
    small = family == "cifar"
    net = resnet(depth, 10 if small else 1000, family)
    how = {"width": 8, "half_size": True} if small else {}
    return BlockDrop(net, policy_net(net.num_blocks, family, **how)).eval()


def full_network(net):
    """All blocks and nothing else, which torch.compile understands best: [B, 3, H, W] -> logits."""

    def run(x):
        x = net.stem(x)
        for block in net.blocks:
            x = (block.shortcut(x) + block.residual(x)).relu()
        return net.head(x)

    return run


def make_variants(model, dtype, with_compile):
    """What is measured: name -> function (x, u). The policy network runs, and u is its answer."""
    folded = fast(model).to(dtype)
    model = copy.deepcopy(model).to(dtype)
    variants = {
        "full": lambda x, u: model.resnet(x, execute="sparse"),
        "full, fast": lambda x, u: folded.resnet(x, execute="sparse"),
    }
    if with_compile:
        compiled = torch.compile(full_network(folded.resnet))
        variants["full, compiled"] = lambda x, u: compiled(x)
    variants["masked"] = lambda x, u: (model.policy(x), model.resnet(x, u, execute="masked"))
    variants["sparse"] = lambda x, u: (model.policy(x), model.resnet(x, u, execute="sparse"))
    variants["fast"] = lambda x, u: (folded.policy(x), folded.resnet(x, u, execute="sparse"))
    return variants


def take_turns(variants, batches, device, seconds):
    """Seconds of each round, for about so many in all: name -> [rounds].

    Each variant first runs on all batches once: a GPU plans a convolution anew for each number of
    images. In a round all variants run on the same batch.
    """
    for run, batch in itertools.product(variants.values(), batches):
        run(*batch)
    times = {name: [] for name in variants}
    begun = time.perf_counter()
    for batch in itertools.cycle(batches):
        for name, run in variants.items():
            wait(device)
            start = time.perf_counter()
            run(*batch)
            wait(device)
            times[name].append(time.perf_counter() - start)
        if len(times[name]) >= 3 and time.perf_counter() - begun > seconds:
            return times


def wait(device):
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def compare(times, images, flops_mean, flops_full):
    """A row of the table, from the seconds of each round: a dict of numbers.

    speedup: over the fastest full network, the median over the rounds, with quartiles.
    limit: what FLOPs promise, those of the full network over the mean ones.
    quotient: how much of the limit is reached.
    """
    speed = {name: images / statistics.median(series) for name, series in times.items()}
    best = max((name for name in speed if name.startswith("full")), key=speed.get)
    ratios = [base / ours for base, ours in zip(times[best], times["fast"], strict=True)]
    low, speedup, high = statistics.quantiles(ratios, n=4, method="inclusive")
    limit = flops_full / flops_mean
    return {
        "batch": images,
        "rounds": len(ratios),
        "best full": best,
        "speedup": speedup,
        "quartiles": [low, high],
        "limit": limit,
        "quotient": speedup / limit,
        "images/s": speed,
    }


def measure(model, batches, seconds, dtype, with_compile):
    """One batch size: a row of the table."""
    device = batches[0][0].device
    u = torch.cat([u for _, u in batches])
    flops, flops_full = flops_under(model, u, batches[0][0].shape[2:])
    batches = [(x.to(dtype), u) for x, u in batches]
    variants = make_variants(model, dtype, with_compile)
    times = take_turns(variants, batches, device, seconds)
    row = compare(times, len(batches[0][0]), flops.mean().item(), flops_full)
    row["MiB"] = {}
    for name, run in variants.items():
        row["MiB"][name] = peak_memory(functools.partial(run, *batches[0]), device)
    return row


def peak_memory(run, device):
    """MiB that a call needs beyond what is there before it: of a GPU, or of the process.

    NaN on a CPU but on Linux.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    try:
        ctypes.CDLL(None).malloc_trim(0)  # hands back what is free
        Path("/proc/self/clear_refs").write_text("5")  # sets the peak to what is there now
        before = resident()
        run()
        return resident() - before
    except (OSError, AttributeError, TypeError):
        return math.nan


def resident():
    """The most MiB of memory that the process has had."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**10


def check_memory(size, side, device):
    """ValueError if the batches, with the maps of one block, are larger than the memory."""
    needed = 4 * size * side * side * (3 * DRAWS + 16)
    if device.type == "cuda":
        there = torch.cuda.get_device_properties(device).total_memory
    else:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        sizes = f"need {needed / 2**30:.1f} GiB or more, and there are {there / 2**30:.1f}"
        raise ValueError(f"--batches is {size}; its images {sizes}; try a smaller one")


def hardware(device):
    """The device by name; the number of threads of a CPU."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    name = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(": ")[1] for line in lines if "model name" in line), name)
    return f"{name}, {torch.get_num_threads()} thread(s), torch {torch.__version__}"


def make_parser():
    """The parser of bench.py."""
    parser = Parser(prog="bench.py", description="Images a second, beside what FLOPs promise.")
    add = parser.add_argument
    add("run", nargs="?", help="a run's folder; none: an untrained network, random policies")
    add("--family", default="cifar", help="without RUN: kind of ResNet, cifar or imagenet")
    add("--depth", type=int, default=110, help="without RUN: layers of the ResNet")
    add("--keep", type=float, help="without RUN: blocks kept on average; default: half")
    add("--image-size", type=int, help="without RUN: side of the images; default: 32 or 224")
    add("--batches", type=int, nargs="+", metavar="B", default=[1, 8, 64, 256])
    add("--seconds", type=float, default=20, help="measure each batch size for about this long")
    add("--dtype", choices=DTYPES, default="fp32", help="arithmetic; tf32: of a GPU's convolutions")
    add("--no-compile", action="store_true", help="leave out torch.compile, which takes minutes")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    add("--json", metavar="FILE", help="also write the numbers to this file")
    return parser


def check(options):
    """ValueError on bad options."""
    if min(options.batches) < 1:
        raise ValueError(f"--batches is {min(options.batches)}; it must be at least 1")
    if not 0 <= options.seconds < math.inf:
        raise ValueError(f"--seconds is {options.seconds}; it must be finite and at least 0")
    if options.image_size is not None and options.image_size < 1:
        raise ValueError(f"--image-size is {options.image_size}; it must be at least 1")


def open_run(folder, device):
    """A run's model and its data, on the device."""
    state, _ = read(folder)
    settings = Settings(**state["settings"])
    sizes = settings.image_size, settings.train_images, settings.val_images
    data = load_data(settings.data, settings.data_dir, *sizes, with_test=True)
    model = restore(state, folder).to(device, memory_format=torch.channels_last)
    return model, data.to(device)


@torch.inference_mode()
def bench(options):
    """Measures what the options say. Returns a dict with the table's rows."""
    check(options)
    device = choose_device(options.device)
    torch.backends.cudnn.allow_tf32 = options.dtype == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = options.dtype == "tf32"
    dtype = torch.bfloat16 if options.dtype == "bf16" else torch.float32
    if options.run:
        model, data = open_run(options.run, device)
        side = data.crop
        subject = f"{options.run}, its own policies"
    else:
        model = untrained(options.depth, options.family)
        model = model.to(device, memory_format=torch.channels_last)
        num_blocks = model.resnet.num_blocks
        side = options.image_size or (32 if options.family == "cifar" else 224)
        keep = num_blocks / 2 if options.keep is None else options.keep
        subject = f"ResNet-{options.depth}, untrained, {keep:g} of {num_blocks} blocks kept"
    found = {"hardware": hardware(device), "subject": f"{subject}; {options.dtype}", "rows": []}
    for size in options.batches:
        check_memory(size, side, device)
        if options.run:
            batches = run_batches(model, size, data)
        else:
            batches = random_batches(model, size, side, keep)
        row = measure(model, batches, options.seconds, dtype, not options.no_compile)
        found["rows"].append(row)
    return found


def make_table(found):
    """The table of what was measured."""
    names = list(found["rows"][0]["images/s"])
    title = f"{found['subject']}; {found['hardware']}; images/s"
    table = Table(title=title, box=SIMPLE_HEAD)
    last = ("speed-up", "quartiles", "limit", "quotient", "MiB full / fast")
    for heading in ("batch", *names, *last):
        table.add_column(heading, justify="right")
    for row in found["rows"]:
        low, high = row["quartiles"]
        table.add_row(
            str(row["batch"]),
            *(f"{speed:.{1 if speed >= 10 else 2}f}" for speed in row["images/s"].values()),
            f"{row['speedup']:.2f}",
            f"{low:.2f}-{high:.2f}",
            f"{row['limit']:.2f}",
            f"{row['quotient']:.2f}",
            f"{row['MiB'][row['best full']]:.0f} / {row['MiB']['fast']:.0f}",
        )
    return table


def main(arguments=None):
    """`python tests/speed/bench.py`. Returns the exit code."""
    options = make_parser().parse_args(arguments)
    try:
        found = bench(options)
        width = None if sys.stdout.isatty() else 140
        safe_console(width=width).print(make_table(found))
        if options.json:
            Path(options.json).write_text(json.dumps(found, indent=1) + "\n")
    except (ValueError, OSError) as problem:
        print(f"bench.py: {problem}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as problem:
        if not out_of_memory(problem):
            raise
        print("bench.py: the memory does not suffice; try smaller --batches", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

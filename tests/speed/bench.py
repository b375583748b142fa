"""Wall-clock time: is BlockDrop as much faster than the full network as its FLOPs say?

`python tests/speed/bench.py --depth 110 --keep 17` measures an untrained network under random
policies, `python tests/speed/bench.py RUN` a trained one under its own. The variants of a batch
size take turns on the same images in one process, so that whatever else the machine does hits all
alike; medians over the rounds. The full network gets every optimisation that BlockDrop gets.
"""

import copy
import itertools
import json
import math
import platform
import statistics
import sys
import time
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from blockdrop_min import BlockDrop, fast, policy_net, resnet
from blockdrop_min.lab.data import centre_crop, load_data, seeded
from blockdrop_min.lab.evaluation import flops_under
from blockdrop_min.lab.process import choose_device
from blockdrop_min.lab.program import Parser, console, guarded
from blockdrop_min.lab.report import open_run, table
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


def run_batches(model, size, settings, device):
    """The same of a run's test images, and the policies that the model gives them."""
    sizes = settings.image_size, settings.train_images, settings.val_images
    data = load_data(settings.data, settings.data_dir, *sizes, with_test=True).to(device)
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
    return compare(times, len(batches[0][0]), flops.mean().item(), flops_full)


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


@torch.inference_mode()
def bench(options):
    """Measures what the options say. Returns a dict with the table's rows."""
    check(options)
    device = choose_device(options.device)
    torch.backends.cudnn.allow_tf32 = options.dtype == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = options.dtype == "tf32"
    dtype = torch.bfloat16 if options.dtype == "bf16" else torch.float32
    if options.run:
        _, settings, model = open_run(options.run, device)
        batches_of = partial(run_batches, settings=settings, device=device)
        subject = f"{options.run}, its own policies"
    else:
        model = untrained(options.depth, options.family)
        model = model.to(device, memory_format=torch.channels_last)
        num_blocks = model.resnet.num_blocks
        side = options.image_size or (32 if options.family == "cifar" else 224)
        keep = num_blocks / 2 if options.keep is None else options.keep
        batches_of = partial(random_batches, side=side, keep=keep)
        subject = f"ResNet-{options.depth}, untrained, {keep:g} of {num_blocks} blocks kept"
    found = {"hardware": hardware(device), "subject": f"{subject}; {options.dtype}", "rows": []}
    for size in options.batches:
        batches = batches_of(model, size)
        row = measure(model, batches, options.seconds, dtype, not options.no_compile)
        found["rows"].append(row)
    return found


def make_table(found):
    """The table of what was measured."""
    rows = []
    for row in found["rows"]:
        speeds = [f"{speed:.{1 if speed >= 10 else 2}f}" for speed in row["images/s"].values()]
        quartiles = "{:.2f}-{:.2f}".format(*row["quartiles"])
        reached = [f"{row['speedup']:.2f}", quartiles, f"{row['limit']:.2f}"]
        rows.append([str(row["batch"]), *speeds, *reached, f"{row['quotient']:.2f}"])
    names = list(found["rows"][0]["images/s"])
    return table(["batch", *names, "speed-up", "quartiles", "limit", "quotient"], rows)


def run(options):
    """Measures, prints and writes. Returns the exit code, 0."""
    found = bench(options)
    screen = console(width=None if sys.stdout.isatty() else 140)
    screen.print(f"{found['subject']}; {found['hardware']}; images/s")
    screen.print(make_table(found))
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=1) + "\n")
    return 0


def main(arguments=None):
    """`python tests/speed/bench.py`. Returns the exit code."""
    options = make_parser().parse_args(arguments)
    return guarded("bench.py", partial(run, options))


if __name__ == "__main__":
    sys.exit(main())

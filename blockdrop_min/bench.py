"""Wall-clock time: is BlockDrop as much faster than the full network as its FLOPs say? `python evaluate.py --bench`

The variants of a batch size take turns, round after round, in one process, so that whatever else the machine does hits all
alike; medians over the rounds. The full network gets every optimisation that BlockDrop gets.
"""

import copy
import functools
import math
import platform
import statistics
import time
from pathlib import Path

import torch
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
        Path("/proc/self/clear_refs").write_text("5")  # sets the peak to what is there now
    except OSError:
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
def inference(model, batches, cost, seconds, with_compile=True):
    """Measures one batch size: a dict of numbers. batches: [(x prepared, u)]; the policy network runs, and u is what it says.

    speedup: over the fastest full network, median over the rounds, with quartiles.    limit: what FLOPs would give.
    """
    quick, device, size = fast(model), batches[0][0].device, len(batches[0][0])
    turn = iter(range(10**9))

    def full(net):
        return lambda: net(batches[next(turn) % DRAWS][0])

    def blockdrop(pair, **execute):
        def run():
            x, u = batches[next(turn) % DRAWS]
            pair.policy(x)
            pair.resnet(x, u, **execute)

        return run

    variants = {"full": full(quick.resnet), "full, readable": full(model.resnet)}
    if with_compile:
        compiled = torch.compile(plain(quick.resnet.net))
        variants["full, compiled"] = full(lambda x: torch.cat([compiled(piece) for piece in x.split(PIECE)]))
    variants["masked"], variants["sparse"] = blockdrop(model, execute="masked"), blockdrop(model, execute="sparse")
    variants["fast"] = blockdrop(quick)
    times = take_turns(variants, device, seconds)
    best = min((name for name in times if name.startswith("full")), key=lambda name: statistics.median(times[name]))
    ratios = sorted(a / b for a, b in zip(times[best], times["fast"], strict=True))
    low, speedup, high = statistics.quantiles(ratios, n=4, method="inclusive")
    ours = torch.cat([cost.of(u) for _, u in batches]).mean().item()
    if not isinstance(model.policy, FixedPolicy):
        ours += policy_cost(model.policy, batches[0][0].shape[-1])
    limit = cost.full / ours
    return {
        "batch": size, "rounds": len(ratios), "best full": best, "speedup": speedup, "quartiles": [low, high], "limit": limit,
        "quotient": speedup / limit, "images/s": {name: size / statistics.median(series) for name, series in times.items()},
        "MiB": {name: peak_memory(variants[name], device) for name in ("full", "fast")},
    }  # fmt: skip


# ---- training
class Drawn(nn.Module):
    """A policy network that runs, and says what `u` says: it keeps with 0.95 or with 0.05."""

    def __init__(self, policy, u):
        super().__init__()
        self.policy, self.u, self.num_blocks = policy, u, policy.num_blocks

    def forward(self, x):
        return 0.05 + 0.9 * self.u + 0 * self.policy(x)


def dense(net, x, u):
    """The authors' pass: every block on every image, multiplied by 0 or 1."""
    x = net.stem(x)
    for k, block in enumerate(net.blocks):
        keep, shortcut = u[:, k, None, None, None], block.shortcut(x)
        x = keep * (shortcut + block.residual(x)).relu() + (1 - keep) * shortcut
    return net.head(x)


def authors_step(model, x, y, free, alpha, beta, gamma, generator, joint=False):
    """A training step as the authors wrote it: two dense passes, of the sampled and of the greedy policy."""
    s = model.policy(x)
    s_bounded = bound(s, alpha)
    u, u_greedy = force_on(sample(s_bounded, generator), free), force_on(greedy(s.detach()), free)
    with torch.set_grad_enabled(joint):
        logits = dense(model.resnet, x, u)
    with torch.no_grad():
        R_greedy = reward(u_greedy, dense(model.resnet, x, u_greedy).argmax(1) == y, gamma)
    A = reward(u, logits.argmax(1) == y, gamma) - R_greedy
    loss = policy_loss(s_bounded, u, A, free) - beta * entropy(s_bounded, free)
    return loss + nn.functional.cross_entropy(logits, y) if joint else loss, {}


def training(model, u, seconds):
    """Images/s of training steps on random images, the authors' and ours, over each stage: {stage: {whose: number}}.

    u: [B, K], what the policy ends with. In the curriculum the blocks come under its control from the last to the first;
    four moments of that, evenly spaced, count alike.
    """
    (B, K), x, y = u.shape, torch.randn(len(u), 3, 32, 32), torch.arange(len(u)) % 10
    models = {"authors'": BlockDrop(model.resnet, Drawn(model.policy, u))}
    models["ours"] = copy.deepcopy(models["authors'"]).to(memory_format=torch.channels_last)
    steps, found = {"authors'": authors_step, "ours": policy_step}, {}
    for stage, moments in {"curriculum": (1 / 8, 3 / 8, 5 / 8, 7 / 8), "finetune": (1.0,)}.items():

        def step(name, free):
            images = models[name].prepare(x) if name == "ours" else x
            models[name].zero_grad()
            steps[name](models[name], images, y, free, 0.8, 0.1, 2.0, seeded(0), joint=stage == "finetune")[0].backward()  # noqa: B023

        took = dict.fromkeys(models, 0.0)
        for share in moments:
            for each in models.values():
                set_mode(each, stage)
            runs = {name: functools.partial(step, name, torch.arange(K) >= K - round(share * K)) for name in models}
            for name, series in take_turns(runs, x.device, seconds).items():
                took[name] += statistics.median(series)
        found[stage] = {name: B * len(moments) / total for name, total in took.items()}
    return found


# ---- what is printed
def hardware(device):
    """The device by name, with the number of threads on a CPU."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    names = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line] if (
        Path("/proc/cpuinfo").exists()) else [platform.processor()]  # fmt: skip
    return f"{names[0]}, {torch.get_num_threads()} thread(s), torch {torch.__version__}"


def table(rows, title):
    """The rows of `inference`, a line for each batch size."""
    names = list(rows[0]["images/s"])
    shown = Table(title=title)
    for heading in ("batch", *names, "speed-up", "limit", "quotient", "MiB full, fast"):
        shown.add_column(heading, justify="right")
    for row in rows:
        speeds = [f"{row['images/s'][name]:.1f}" for name in names]
        memory = "{full:.0f}, {fast:.0f}".format(**row["MiB"])
        shown.add_row(
            str(row["batch"]), *speeds, f"{row['speedup']:.2f}", f"{row['limit']:.2f}", f"{row['quotient']:.2f}", memory
        )
    return shown


def subject(options, device):
    """What is measured: (its name, the model, a function size -> [(x prepared, u)] of DRAWS batches, the image size)."""
    generator = seeded("bench")
    if options.runs:
        (run,) = options.runs if len(options.runs) == 1 else (None,)
        if run is None:
            raise ValueError(f"--bench measures one run, not {len(options.runs)}")
        state = read(run)
        model, settings = restore(state, run).to(device, memory_format=torch.channels_last), Settings(**state["settings"])
        data = load_data(settings.data, options.data_dir or settings.data_dir, settings.image_size, settings.train_images,
                         settings.val_images, with_test=True).to(device)  # fmt: skip

        def batches(size):
            order = torch.randint(len(data.test), (DRAWS * size,), generator=generator)
            prepared = [model.prepare(centre_crop(x, data.crop)) for x, _ in data.test.batches(size, order)]
            return [(x, greedy(model.policy(x), model.threshold)) for x in prepared]

        return f"{run}, its own policies", model, batches, data.crop
    side = options.image_size or (32 if options.family == "cifar" else 224)
    model = untrained(options.depth, options.family).to(device, memory_format=torch.channels_last)
    K = model.resnet.num_blocks
    keep = K / 2 if options.keep is None else options.keep
    synthetic_policies(1, K, keep, generator)

    def batches(size):
        x = torch.randn(DRAWS, size, 3, side, side, generator=generator).to(device)
        return [(model.prepare(part), synthetic_policies(size, K, keep, generator).to(device)) for part in x]

    return f"ResNet-{options.depth}, untrained, {keep:g} of {K} blocks kept, random per image", model, batches, side


def bench(options, device, console):
    """`evaluate.py --bench`: measures, prints, and gives what --json writes. Raises ValueError on bad options."""
    sizes = options.batches or [1, 8, 64, 256, *([1024] if device.type == "cuda" else [])]
    if min(sizes) < 1 or not options.seconds >= 0 or (options.image_size is not None and options.image_size < 1):
        raise ValueError("--batches and --image-size must be at least 1, and --seconds at least 0")
    name, model, batches, side = subject(options, device)
    title, cost = f"{name}; {hardware(device)}", resnet_cost(model.resnet, side)
    if options.train:
        with torch.inference_mode(False):
            size = (options.batches or [64])[0]
            found = training(model, batches(size)[0][1], options.seconds)
        for stage, speed in found.items():
            ours, theirs = speed["ours"], speed["authors'"]
            console.print(f"{stage}, batch {size}: {ours:.1f} images/s, authors' step {theirs:.1f}: x {ours / theirs:.2f}")
        console.print(title)
        return {"hardware": hardware(device), "subject": name, "batch": size, "training": found}
    rows = []
    for size in sizes:
        with torch.inference_mode():
            drawn = batches(size)
        rows.append(inference(model, drawn, cost, options.seconds, not options.no_compile))
        console.print("batch {}: x {:.2f} (quartiles {:.2f}-{:.2f}) of at most {:.2f}".format(
            size, rows[-1]["speedup"], *rows[-1]["quartiles"], rows[-1]["limit"]))  # fmt: skip
    console.print(table(rows, title))
    return {"hardware": hardware(device), "subject": name, "rows": rows}

"""The results of finished runs: the table, its JSON, and the pictures. The one place that reads the test set."""

import json
import math
import statistics
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from blockdrop_min.lab import pictures
from blockdrop_min.lab.checkpoint import read, restore
from blockdrop_min.lab.data import load_data
from blockdrop_min.lab.evaluation import compare, rank_correlation, run_policy
from blockdrop_min.lab.process import choose_device
from blockdrop_min.lab.settings import Parser, Settings

MAY_DIFFER = ("seed", "resnet", "device", "workers", "data_dir", "epochs_per_checkpoint")  # between the runs of one table
NAMES = {
    "full": "full network", "blockdrop": "BlockDrop", "first": "FirstK", "random": "RandomK", "distribute": "DistributeK",
    "best static": "best static", "blind": "random, same keep rates",
}  # fmt: skip


def make_parser():
    """The parser of evaluate.py."""
    parser = Parser(prog="evaluate.py", description="The results table of one run, or mean ± std over several.")
    parser.add_argument("runs", nargs="*", metavar="RUN", help="a run's folder")
    parser.add_argument("--json", metavar="FILE", help="also write the numbers of the (first) run to this file")
    parser.add_argument(
        "--threshold", type=float, nargs="+", default=[], help="add rows that keep a block where s >= threshold, not 0.5"
    )
    parser.add_argument("--data-dir", help="folder with the data; default: as in training")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
    timing = parser.add_argument_group("wall-clock time")
    timing.add_argument("--bench", action="store_true", help="measure images a second, of the run RUN or of an untrained network")
    timing.add_argument("--family", default="cifar", help="without RUN: kind of ResNet, cifar or imagenet")
    timing.add_argument("--depth", type=int, default=110, help="without RUN: layers of the ResNet")
    timing.add_argument("--keep", type=float, help="without RUN: blocks that random policies keep on average; default: half")
    timing.add_argument("--image-size", type=int, help="without RUN: side of the images; default: 32, imagenet 224")
    timing.add_argument("--batches", type=int, nargs="+", metavar="B", help="batch sizes; default: 1 8 64 256, GPU also 1024")
    timing.add_argument("--seconds", type=float, default=20, help="measure each batch size for about this long")
    timing.add_argument("--no-compile", action="store_true", help="leave out torch.compile, which takes minutes")
    return parser


def open_run(run, data_dir, device):
    """A run's settings, the stage it is in, its model and its data, on the device. ValueError if they do not fit together."""
    state, warning = read(run)
    model, settings = restore(state, run), Settings(**state["settings"])
    data = load_data(settings.data, data_dir or settings.data_dir, settings.image_size, settings.train_images,
                     settings.val_images, with_test=True)  # fmt: skip
    if list(data.classes) != list(state["classes"]):
        theirs = f"{len(state['classes'])} classes, but the data has {len(data.classes)}: {data.classes[:5]}"
        raise ValueError(f"{run} was trained on {theirs}")
    return settings, state["stage"], model.to(device, memory_format=torch.channels_last), data.to(device)


def evaluate(run, data_dir, device, thresholds):
    """One run, measured on the test set: (settings, data, results)."""
    settings, stage, model, data = open_run(run, data_dir, device)
    if stage != "pretrain" and settings.policy == "learned":
        results = compare(model, data, settings.seed)
        for threshold in thresholds:
            results[f"BlockDrop, s >= {threshold}"] = run_policy(model, data.test, data.crop, threshold=threshold)
    else:
        policies = {"full": torch.ones(model.resnet.num_blocks)} | ({} if stage == "pretrain" else {"blockdrop": None})
        results = {name: run_policy(model, data.test, data.crop, u) for name, u in policies.items()}
    return settings, data, results


def numbers(data, results):
    """What --json writes, as a dict."""
    ours = results.get("blockdrop", results["full"])
    names = "accuracy blocks_mean blocks_std flops_mean flops_std flops_full flops_saved distinct_policies".split()
    rivals = {name: {"accuracy": r.accuracy, "blocks": r.blocks_mean, "flops": r.flops_mean} for name, r in results.items()}
    found = {name: getattr(ours, name) for name in names} | {
        "full_accuracy": results["full"].accuracy, "images": len(data.test), "num_blocks": ours.u.shape[1], "baselines": rivals,
    }  # fmt: skip
    if data.test.difficulty is not None:
        difficulty, blocks = data.test.difficulty.cpu(), ours.u.sum(1)
        quarters = [(difficulty >= q / 4) & (difficulty < (q + 1) / 4) for q in range(4)]
        found["rank_correlation"] = rank_correlation(blocks, difficulty)
        found["blocks_by_difficulty"] = [blocks[quarter].mean().item() if quarter.any() else None for quarter in quarters]
    return found


def label(name, settings):
    """What a row of the results is called in tables and pictures."""
    return settings.policy if name == "blockdrop" and settings.policy != "learned" else NAMES.get(name, name)


def mean_std(values, form, std=None):
    """The mean of some numbers, with their standard deviation, or that of the only one over its images, if it has any."""
    if None in values:
        return "none"
    std = statistics.stdev(values) if len(values) > 1 else std
    return form.format(statistics.mean(values)) + ("" if std is None else f" ± {form.format(std)}")


def show(console, runs, group):
    """One table for runs that differ in their seed only: the mean over them, ± the standard deviation (one run: over images).

    group: (settings, `numbers`, results) of each run.
    """
    settings, first, results = group[0]
    table = Table(title=f"{', '.join(runs)}: ResNet-{settings.depth} on {settings.data}, {len(group)} run(s), test set")
    for heading in ("policy", "accuracy %", "blocks", "FLOPs (M)", "FLOPs saved %", "policies"):
        table.add_column(heading, justify="left" if heading == "policy" else "right", no_wrap=True)
    for name in results:
        rows = [results[name] for _, _, results in group]
        table.add_row(
            label(name, settings), mean_std([100 * r.accuracy for r in rows], "{:.2f}"),
            mean_std([r.blocks_mean for r in rows], "{:.2f}", rows[0].blocks_std),
            mean_std([r.flops_mean / 1e6 for r in rows], "{:.1f}", rows[0].flops_std / 1e6),
            mean_std([100 * r.flops_saved for r in rows], "{:.1f}"),
            mean_std([r.distinct_policies for r in rows], "{:.0f}"),
        )  # fmt: skip
    console.print(table)
    for run, (_, _, results) in zip(runs, group, strict=True):
        if "best static" in results:
            console.print(f"{run}: best static policy {''.join(str(int(u)) for u in results['best static'].u[0])}")
    if "rank_correlation" in first and "blockdrop" in results:
        quarters = zip(*(found["blocks_by_difficulty"] for _, found, _ in group), strict=True)
        correlation = mean_std([found["rank_correlation"] for _, found, _ in group], "{:.2f}")
        console.print(f"rank correlation of blocks with difficulty: {correlation}; "
                      f"blocks by quarter of difficulty: {', '.join(mean_std(q, '{:.2f}') for q in quarters)}")  # fmt: skip


def draw(run, settings, data, results):
    """Writes the run's pictures into its folder and gives their paths."""
    folder = Path(run) if Path(run).is_dir() else Path(run).parent
    paths = [folder / name for name in ("keep_rates.png", "extremes.png", "tradeoff.png")]
    u = results["blockdrop"].u
    pictures.keep_rates(u, data.test.labels.cpu(), data.classes, paths[0])
    pictures.extremes(data.test, u, data.classes, paths[1])
    published = pictures.PUBLISHED if " ".join(data.classes) == pictures.CIFAR10 else None
    pictures.tradeoff({label(name, settings): (r.flops_mean, r.accuracy) for name, r in results.items()}, paths[2], published)
    return paths


def main(arguments=None):
    """`python evaluate.py`, with these arguments or those of the command line. Returns the exit code."""
    options = make_parser().parse_args(arguments)
    console, groups = Console(highlight=False, width=None if sys.stdout.isatty() else 120), {}
    found = []
    try:
        device = choose_device(options.device)
        if options.bench:
            if len(options.runs) > 1:
                raise ValueError(f"--bench measures one run, not {len(options.runs)}")
            run = open_run(options.runs[0], options.data_dir, device)[2:] if options.runs else None
            found.append(bench(options, device, console, run))
        elif not options.runs:
            raise ValueError("name a run's folder, or measure wall-clock time with --bench")
        elif not all(map(math.isfinite, options.threshold)):
            raise ValueError(f"--threshold is {options.threshold}; each must be a number")
        for run in [] if options.bench else options.runs:
            settings, data, results = evaluate(run, options.data_dir, device, options.threshold)
            found.append(numbers(data, results))
            alike = {name: value for name, value in vars(settings).items() if name not in MAY_DIFFER}
            groups.setdefault(str((alike, *results)), {})[run] = (settings, found[-1], results)
            if "blockdrop" in results:
                console.print(f"pictures: {', '.join(map(str, draw(run, settings, data, results)))}")
        for group in groups.values():
            show(console, list(group), list(group.values()))
        if options.json:
            Path(options.json).write_text(json.dumps(found[0], indent=1) + "\n")
    except (ValueError, OSError) as problem:
        print(f"evaluate.py: {problem}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

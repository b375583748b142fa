"""Measures finished runs on the test set, which is read nowhere else: table, JSON and pictures.

`python evaluate.py RUN...` prints the results table, with `--enumerate` also what all 2^K policies
can do. `python evaluate.py RUN --images FILE...` answers for images of one's own.
"""

# ruff: noqa: E402
import os
import signal
from multiprocessing import parent_process


def stop(number, frame):
    """Ends the program without a traceback. What it writes, it writes as a whole or not at all."""
    if parent_process() is None:  # one line, not one more from each process that reads images
        os.write(2, b"evaluate.py: stopped\n")
    os._exit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, stop)  # before the imports below, which take seconds

import json
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table

from blockdrop_min.lab import pictures
from blockdrop_min.lab.checkpoint import read, restore, write_safely
from blockdrop_min.lab.data import Data, load_data
from blockdrop_min.lab.enumeration import enumerate_policies
from blockdrop_min.lab.evaluation import (
    dealt_loss,
    evaluate_policies,
    flops_under,
    rank_correlation,
    run_policy,
)
from blockdrop_min.lab.images import load_image, scan
from blockdrop_min.lab.log import safe_console
from blockdrop_min.lab.process import choose_device
from blockdrop_min.lab.settings import Parser, Settings

# What may differ between the runs of one table.
MAY_DIFFER = ("seed", "resnet", "device", "workers", "data_dir", "epochs_per_checkpoint")
NAMES = {  # of the rows in tables and pictures
    "full": "full network",
    "blockdrop": "BlockDrop",
    "first": "FirstK",
    "random": "RandomK",
    "distribute": "DistributeK",
    "best static": "best static",
    "blind": "same keep rates",
}


@dataclass
class Evaluation:
    """A run, measured. results: name -> `Result`.    numbers: what --json writes."""

    run: str
    settings: Settings
    data: Data
    results: dict
    numbers: dict


def make_parser():
    """The parser of evaluate.py."""
    about = (
        "The results table of a run, or mean ± deviation over several that differ in their seed."
    )
    parser = Parser(prog="evaluate.py", description=about, allow_abbrev=False)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, or demo")
    parser.add_argument("--json", metavar="FILE", help="also write the numbers of the (first) run")
    counting = "also run all 2^K policies on all images (minutes; K at most 12)"
    parser.add_argument("--enumerate", action="store_true", help=counting)
    answering = (
        "only say what the model makes of these image files and folders; exit code 2 if any "
    )
    answering += "cannot be read"
    parser.add_argument("--images", nargs="+", metavar="FILE", help=answering)
    parser.add_argument("--data-dir", help="folder with the data; default: as in training")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
    return parser


def complain(problem):
    """One line on standard error."""
    print(f"evaluate.py: {problem}", file=sys.stderr)


def open_run(run, device):
    """A run's checkpoint, its settings and its model on the device."""
    state, warning = read(run)
    if warning:
        complain(warning)
    model = restore(state, run).to(device, memory_format=torch.channels_last)
    return state, Settings(**state["settings"]), model


# Measuring


def evaluate(run, options, device):
    """A run on the test set, as an `Evaluation`; ValueError if run, data and options do not fit."""
    state, settings, model = open_run(run, device)
    sizes = settings.image_size, settings.train_images, settings.val_images
    data = load_data(
        settings.data, options.data_dir or settings.data_dir, *sizes, with_test=True
    ).to(device)
    if list(data.classes) != list(state["classes"]):
        theirs = f"the data has {len(data.classes)}: {list(data.classes[:5])}"
        raise ValueError(f"{run} was trained on {len(state['classes'])} classes, but {theirs}")
    trained = state["stage"] != "pretrain"
    learned = trained and settings.policy == "learned"
    ones = torch.ones(model.resnet.num_blocks)
    run_on_test = (model, data.test, data.crop)

    enumeration = counted = None
    if options.enumerate:
        stage = "finetune" if state["stage"] == "finetune" else "curriculum"
        gamma = getattr(settings, f"{stage}_gamma")
        ours = run_policy(*run_on_test, workers=settings.workers) if learned else None
        enumeration = enumerate_policies(model, data, gamma, ours, settings.workers)
        counted = [torch.tensor([float(u) for u in policy]) for policy in enumeration["frontier"]]
    if learned:
        results = evaluate_policies(model, data, settings.seed, settings.workers, counted)
    else:
        results = {"full": run_policy(*run_on_test, ones, workers=settings.workers)}
        if trained:
            results["blockdrop"] = run_policy(*run_on_test, workers=settings.workers)
    numbers = {"run": run, **numbers_of(data, results)}
    if learned:
        ours = results["blockdrop"]
        numbers["dealt_loss"] = dealt_loss(model, data, ours, settings.seed, settings.workers)
    if enumeration:
        numbers["enumeration"] = enumeration
    return Evaluation(run, settings, data, results, numbers)


def numbers_of(data, results):
    """What --json writes of the results, as a dict."""
    ours = results.get("blockdrop", results["full"])
    numbers = {"images": len(data.test), "num_blocks": ours.u.shape[1]}
    for name in ("accuracy", "blocks_mean", "blocks_std", "flops_mean", "flops_std"):
        numbers[name] = getattr(ours, name)
    for name in ("flops_full", "flops_saved", "distinct_policies"):
        numbers[name] = getattr(ours, name)
    numbers["full_accuracy"] = results["full"].accuracy
    numbers["baselines"] = {}
    for name, result in results.items():
        row = {"accuracy": result.accuracy, "blocks": result.blocks_mean}
        numbers["baselines"][name] = row | {"flops": result.flops_mean}
    if data.test.difficulty is not None:
        difficulty = data.test.difficulty.cpu()
        blocks = ours.u.sum(1)
        numbers["rank_correlation"] = rank_correlation(blocks, difficulty)
        quarters = (4 * difficulty).long().clamp(max=3)
        means = [blocks[quarters == q] for q in range(4)]
        means = [part.mean().item() if len(part) else None for part in means]
        numbers["blocks_by_difficulty"] = means
    return numbers


# Printing


def label(name, settings):
    """What a row of the results is called in tables and pictures."""
    fixed = name == "blockdrop" and settings.policy != "learned"
    return settings.policy if fixed else NAMES.get(name, name)


def mean_std(values, form, std=None):
    """The mean of some numbers with their standard deviation, or with `std` if there is but one."""
    if None in values:
        return "none"
    std = statistics.stdev(values) if len(values) > 1 else std
    mean = form.format(statistics.mean(values))
    return mean if std is None else f"{mean} ± {form.format(std)}"


def make_table(title, headings):
    """A table whose numbers are never cut: at 80 columns the first column wraps."""
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False, title_justify="left")
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="right" if i else "left", no_wrap=i > 0, overflow="fold")
    return table


def results_table(group):
    """The table of runs that differ in their seed: means over runs, ± over runs (one: images)."""
    settings, first = group[0].settings, group[0].results
    unit, name = (1e9, "G") if first["full"].flops_full > 1e9 else (1e6, "M")
    form = "{:.2f}" if unit == 1e9 else "{:.1f}"
    runs = ", ".join(evaluation.run for evaluation in group)
    title = f"{runs}: ResNet-{settings.depth} on {settings.data}, {len(group)} run(s), test set"
    headings = ["policy", "accuracy %", "blocks", f"FLOPs ({name})", "saved %", "policies"]
    table = make_table(title, headings)
    for name, one in first.items():
        rows = [evaluation.results[name] for evaluation in group]
        table.add_row(
            label(name, settings),
            mean_std([100 * row.accuracy for row in rows], "{:.2f}"),
            mean_std([row.blocks_mean for row in rows], "{:.2f}", one.blocks_std),
            mean_std([row.flops_mean / unit for row in rows], form, one.flops_std / unit),
            mean_std([100 * row.flops_saved for row in rows], "{:.1f}"),
            mean_std([row.distinct_policies for row in rows], "{:.0f}"),
        )
    return table


def enumeration_table(evaluation):
    """What policies can achieve, by what they are chosen by; then the frontier of single ones."""
    found = evaluation.numbers["enumeration"]
    title = f"{evaluation.run}: all policies, reward at gamma {found['gamma']:g}, test set"
    headings = ["chosen by", "reward", "accuracy %", "blocks", "FLOPs (M)", "knows"]
    table = make_table(title, headings)
    for name, row in (found["policies"] | found["frontier"]).items():
        table.add_row(
            name,
            f"{row['reward']:.3f} ± {row['reward_error']:.3f}",
            f"{100 * row['accuracy']:.2f}",
            f"{row['blocks']:.2f}",
            f"{row['flops'] / 1e6:.1f}",
            row["look"],
            end_section=name == "each image's best",
        )
    return table


def verdict(evaluation):
    """What came out, in words."""
    ours = evaluation.results["blockdrop"]
    lost = 100 * (evaluation.results["full"].accuracy - ours.accuracy)
    text = f"{'saves' if ours.flops_saved >= 0 else 'adds'} {100 * abs(ours.flops_saved):.0f} %"
    text = f"BlockDrop {text} of the FLOPs and {'loses' if lost >= 0 else 'gains'} {abs(lost):.1f}"
    if ours.distinct_policies == 1:
        return f"{text} points; one policy for all images."
    loss, error = (100 * number for number in evaluation.numbers["dealt_loss"])
    dealt = f"dealt to other images they lose {loss:.1f} ± {error:.1f} points"
    choice = "the choice is one per image" if loss > 2 * error else "no sign of a choice per image"
    return f"{text} points; {ours.distinct_policies} policies; {dealt}: {choice}."


def report(console, evaluation):
    """The lines below the table about one run."""
    numbers, results = evaluation.numbers, evaluation.results
    lines = []
    if "best static" in results:
        digits = "".join(str(int(kept)) for kept in results["best static"].u[0])
        lines = [f"best static policy {digits}", verdict(evaluation)]
    if "rank_correlation" in numbers and "blockdrop" in results:
        quarters = [mean_std([mean], "{:.2f}") for mean in numbers["blocks_by_difficulty"]]
        text = f"rank correlation of blocks with difficulty: {numbers['rank_correlation']:.2f}; "
        lines.append(f"{text}blocks by quarter of difficulty: {', '.join(quarters)}")
    for line in lines:
        console.print(f"{evaluation.run}: {line}", soft_wrap=True)
    if "enumeration" in numbers:
        console.print(enumeration_table(evaluation))


# Drawing and saving


def folder_of(run):
    """Where a run's pictures go: its folder. Those of a model that ships go to runs/."""
    path = Path(run)
    if path.exists():
        return path if path.is_dir() else path.parent
    folder = Path("runs", f"{run}-shipped")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def draw(group):
    """Draws the pictures of each run of a group, and one of all if there are several.

    Returns their paths.
    """
    drawn = []
    for evaluation in group:
        folder = folder_of(evaluation.run)
        data = evaluation.data
        if "blockdrop" in evaluation.results:
            u = evaluation.results["blockdrop"].u
            drawn += [folder / name for name in ("keep_rates.png", "extremes.png")]
            pictures.keep_rates(u, data.test.labels.cpu(), data.classes, drawn[-2])
            pictures.extremes(data.test, u, data.classes, drawn[-1])
            drawn.append(draw_tradeoff([evaluation], folder / "tradeoff.png"))
        if "enumeration" in evaluation.numbers:
            found = evaluation.numbers["enumeration"]
            frontier = [(row["flops"], row["accuracy"]) for row in found["frontier"].values()]
            points = {}
            for name, row in found["policies"].items():
                points[name] = [(row["flops"], row["accuracy"])]
            drawn.append(folder / "enumeration.png")
            pictures.tradeoff(points, drawn[-1], {"single policies": frontier})
    if len(group) > 1:
        name = f"tradeoff_of_{len(group)}_runs.png"
        drawn.append(draw_tradeoff(group, folder_of(group[0].run) / name))
    return drawn


def draw_tradeoff(group, path):
    """The trade-off picture of runs that differ in their seed. Returns its path."""
    points = {}
    for name in group[0].results:
        rows = [evaluation.results[name] for evaluation in group]
        points[label(name, group[0].settings)] = [(row.flops_mean, row.accuracy) for row in rows]
    lines = {}
    if " ".join(group[0].data.classes) == pictures.CIFAR10:
        for name, line in pictures.PUBLISHED.items():
            lines[f"{name}, paper"] = [(1e8 * flops, percent / 100) for flops, percent in line]
    pictures.tradeoff(points, path, lines)
    return path


def check_json(path):
    """ValueError if what stands at the path was not written by --json, and would be lost."""
    try:
        if (
            not path.exists()
            or not path.stat().st_size
            or "baselines" in json.loads(path.read_text())
        ):
            return
    except (ValueError, TypeError):
        pass
    raise ValueError(f"{path} is not from --json and would be lost; name another file")


# Images of one's own


def answer(run, named, device, console):
    """Says what a run's model makes of image files, and draws them. Returns the exit code."""
    state, settings, model = open_run(run, device)
    size = settings.image_size or {"folder": 0, "imagenet": 224}.get(settings.data, 32)
    bar = "□■" if console.encoding.startswith("utf") else ".#"
    paths = files_in(named)
    width = max(len(path) for path in paths)
    images, blocks, names = [], [], []
    for path in paths:
        try:
            image = load_image(path, size)
        except ValueError as problem:
            complain(problem)
            continue
        with torch.inference_mode():
            logits, u = model(image[None].to(device))
        probability, label = logits[0].softmax(0).max(0)
        flops, full = flops_under(model, u.cpu(), image.shape[1:])
        images.append(image)
        blocks.append(int(u.sum()))
        names.append(str(state["classes"][label]))
        which = "".join(bar[int(keep)] for keep in u[0])
        prediction = f"{names[-1]} {100 * probability:.1f} %"
        saved = (
            f"{blocks[-1]} of {u.shape[1]} blocks, {100 * (1 - flops.item() / full):.0f} % saved"
        )
        console.print(f"{path:<{width}}  {which}  {saved}: {prediction}", soft_wrap=True)
    if images:
        path = folder_of(run) / "images.png"
        pictures.answers(images, blocks, names, path)
        console.print(f"picture: {path}", soft_wrap=True)
    return 0 if len(images) == len(paths) else 2


def files_in(named):
    """The image files that are named, and those in the folders that are; ValueError if there is none."""
    paths = []
    for name in named:
        paths += scan(name, []) if Path(name).is_dir() else [name]
    if not paths:
        raise ValueError(f"there are no images in {', '.join(named)}")
    return paths


def main(arguments=None):
    """`python evaluate.py`, with these arguments or the command line's. Returns the exit code."""
    options = make_parser().parse_args(arguments)
    console = safe_console()
    console.width = max(80, console.width)
    try:
        device = choose_device(options.device)
        if options.images:
            if len(options.runs) > 1 or options.json or options.enumerate:
                raise ValueError("--images takes one RUN, and neither --json nor --enumerate")
            return answer(options.runs[0], options.images, device, console)
        if options.json:
            check_json(Path(options.json))
        evaluations = [evaluate(run, options, device) for run in options.runs]
    except (ValueError, OSError) as problem:
        complain(problem)
        return 2

    groups = {}  # runs that differ in MAY_DIFFER only
    for evaluation in evaluations:
        settings = vars(evaluation.settings).items()
        alike = {name: value for name, value in settings if name not in MAY_DIFFER}
        groups.setdefault(str((alike, *evaluation.results)), []).append(evaluation)

    # What can fail is done before anything is printed, and what fails is said and ends nothing.
    code = 0
    for group in groups.values():
        try:
            drawn = draw(group)
        except (ValueError, OSError) as problem:
            complain(f"the pictures could not be saved: {problem}")
    if options.json:
        numbers = [evaluation.numbers for evaluation in evaluations]
        numbers = numbers[0] | ({"runs": numbers} if len(numbers) > 1 else {})
        try:
            write_safely(Path(options.json), (json.dumps(numbers, indent=1) + "\n").encode())
        except OSError as problem:
            complain(problem)
            code = 2
    for group in groups.values():
        console.print(results_table(group))
        for evaluation in group:
            report(console, evaluation)
    return code


if __name__ == "__main__":
    sys.exit(main())

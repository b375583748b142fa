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

from blockdrop_min.lab import evaluation, images, pictures
from blockdrop_min.lab.checkpoint import read, restore, write_safely
from blockdrop_min.lab.data import STREAM_SIZE, Data, load_data
from blockdrop_min.lab.enumeration import enumerate_policies
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
class Run:
    """A run, measured. results: name -> `Result`.    numbers: what --json writes."""

    name: str
    settings: Settings
    data: Data
    results: dict
    numbers: dict


def make_parser():
    """The parser of evaluate.py."""
    about = "The results table of a run, or mean ± deviation of several that differ in seed."
    counting = "also run all 2^K policies on all images (minutes; K at most 12)"
    answering = "only answer for these images, or folders of them; exit code 2 if one is unreadable"
    parser = Parser(prog="evaluate.py", description=about, allow_abbrev=False)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, or demo")
    parser.add_argument("--json", metavar="FILE", help="also write the numbers of the (first) run")
    parser.add_argument("--enumerate", action="store_true", help=counting)
    parser.add_argument("--images", nargs="+", metavar="FILE", help=answering)
    parser.add_argument("--data-dir", help="folder with the data; default: as in training")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
    return parser


def complain(problem):
    """One line on standard error."""
    print(f"evaluate.py: {problem}", file=sys.stderr)


def open_run(name, device):
    """A run's checkpoint, its settings, and its model on the device."""
    state, warning = read(name)
    if warning:
        complain(warning)
    model = restore(state, name).to(device, memory_format=torch.channels_last)
    return state, Settings(**state["settings"]), model


# Measuring


def evaluate(name, options, device):
    """Measures a run on the test set. ValueError if run, data and options do not fit together."""
    state, settings, model = open_run(name, device)
    folder = options.data_dir or settings.data_dir
    sizes = settings.image_size, settings.train_images, settings.val_images
    data = load_data(settings.data, folder, *sizes, with_test=True).to(device)
    if list(data.classes) != list(state["classes"]):
        classes = f"classes {', '.join(state['classes'])}, but the data has "
        raise ValueError(f"{name} was trained on the {classes}{', '.join(data.classes)}"[:500])
    trained = state["stage"] != "pretrain"
    learned = trained and settings.policy == "learned"
    workers = settings.workers

    numbers = {"run": name}
    counted = None
    if options.enumerate:
        finetuned = state["stage"] == "finetune"
        gamma = settings.finetune_gamma if finetuned else settings.curriculum_gamma
        numbers["enumeration"] = enumerate_policies(model, data, gamma, learned, workers)
        counted = [torch.tensor([*map(float, u)]) for u in numbers["enumeration"]["frontier"]]
    if learned:
        results = evaluation.evaluate_policies(model, data, settings.seed, workers, counted)
        ours = results["blockdrop"]
        loss = evaluation.dealt_loss(model, data, ours, settings.seed, workers)
        numbers["dealt_loss"], numbers["dealt_loss_error"] = loss
    else:
        policies = {"full": torch.ones(model.resnet.num_blocks)}
        policies |= {"blockdrop": None} if trained else {}
        results = {}
        for kind, u in policies.items():
            results[kind] = evaluation.run_policy(model, data.test, data.crop, u, workers=workers)
    return Run(name, settings, data, results, numbers | numbers_of(data, results))


def numbers_of(data, results):
    """What --json writes of the results, as a dict."""
    ours = results.get("blockdrop", results["full"])
    numbers = {"images": len(data.test), "num_blocks": ours.u.shape[1]}
    for name, value in vars(ours).items():
        if not isinstance(value, torch.Tensor):
            numbers[name] = value
    numbers["full_accuracy"] = results["full"].accuracy
    numbers["baselines"] = {}
    for name, result in results.items():
        row = {"accuracy": result.accuracy, "blocks": result.blocks_mean}
        numbers["baselines"][name] = row | {"flops": result.flops_mean}
    if data.test.difficulty is not None:
        difficulty = data.test.difficulty.cpu()
        blocks = ours.u.sum(1)
        numbers["rank_correlation"] = evaluation.rank_correlation(blocks, difficulty)
        quarters = (4 * difficulty).long().clamp(max=3)
        parts = [blocks[quarters == quarter] for quarter in range(4)]
        means = [part.mean().item() if len(part) else None for part in parts]
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


def make_table(headings):
    """A table of at most 80 columns: names wrap, numbers are never cut."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="right" if i else "left", no_wrap=i > 0, overflow="fold")
    return table


def results_table(group):
    """The table of runs that differ in their seed: means over runs, ± over runs (one: images)."""
    first = group[0].results
    unit, letter, form = (1e6, "M", "{:.1f}")
    if first["full"].flops_full > 1e9:
        unit, letter, form = (1e9, "G", "{:.2f}")
    headings = ["policy", "accuracy %", "blocks", f"FLOPs ({letter})", "saved %", "policies"]
    table = make_table(headings)
    for name, one in first.items():
        rows = [run.results[name] for run in group]
        table.add_row(
            label(name, group[0].settings),
            mean_std([100 * row.accuracy for row in rows], "{:.2f}"),
            mean_std([row.blocks_mean for row in rows], "{:.2f}", one.blocks_std),
            mean_std([row.flops_mean / unit for row in rows], form, one.flops_std / unit),
            mean_std([100 * row.flops_saved for row in rows], "{:.1f}"),
            mean_std([row.distinct_policies for row in rows], "{:.0f}"),
        )
    return table


def enumeration_table(found):
    """What policies achieve, by how they are chosen; below, the best ones for all images."""
    table = make_table(["chosen", "reward", "acc. %", "blocks", "FLOPs (M)", "needs"])
    for name, row in (found["policies"] | found["frontier"]).items():
        reward = f"{row['reward']:.3f} ± {row['reward_error']:.3f}"
        numbers = (
            f"{100 * row['accuracy']:.2f}",
            f"{row['blocks']:.2f}",
            f"{row['flops'] / 1e6:.1f}",
        )
        last = name == list(found["policies"])[-1]
        table.add_row(name, reward, *numbers, row["needs"], end_section=last)
    return table


def verdict(run):
    """What came out, in words."""
    ours = run.results["blockdrop"]
    saved = 100 * ours.flops_saved
    lost = 100 * (run.results["full"].accuracy - ours.accuracy)
    text = f"BlockDrop {'saves' if saved >= 0 else 'adds'} {abs(saved):.0f} % of the FLOPs and "
    text += f"{'loses' if lost >= 0 else 'gains'} {abs(lost):.1f} points; "
    if ours.distinct_policies == 1:
        return text + "one policy for all images."
    loss, error = run.numbers["dealt_loss"], run.numbers["dealt_loss_error"]
    text += f"{ours.distinct_policies} policies; dealt to other images they lose "
    text += f"{100 * loss:.1f} ± {100 * error:.1f} points: "
    return text + ("the choice is one per image." if loss > 2 * error else "it is not per image.")


def report(console, group):
    """Prints the results of runs that differ in their seed."""
    settings = group[0].settings
    names = ", ".join(run.name for run in group)
    lines = [f"{names}: ResNet-{settings.depth} on {settings.data}, {len(group)} run(s), test set"]
    lines.append(results_table(group))
    for run in group:
        if "best static" in run.results:
            digits = "".join(str(int(kept)) for kept in run.results["best static"].u[0])
            lines += [f"{run.name}: best static policy {digits}", f"{run.name}: {verdict(run)}"]
    if "blockdrop" in group[0].results and "rank_correlation" in group[0].numbers:
        correlation = mean_std([run.numbers["rank_correlation"] for run in group], "{:.2f}")
        quarters = zip(*(run.numbers["blocks_by_difficulty"] for run in group), strict=True)
        blocks = ", ".join(mean_std(values, "{:.2f}") for values in quarters)
        text = f"rank correlation of blocks with difficulty: {correlation}; "
        lines.append(f"{text}blocks by quarter of difficulty: {blocks}")
    for run in group:
        if "enumeration" in run.numbers:
            found = run.numbers["enumeration"]
            text = f"{run.name}: all policies, counted; reward at gamma {found['gamma']:g}, "
            lines += [f"{text}what needs the label is a bound", enumeration_table(found)]
            lines += [f"{run.name}: {line}" for line in regrets(found)]
    for line in lines:
        console.print(line, soft_wrap=isinstance(line, str))


def regrets(found):
    """How far the learned policy is from what counting finds, in words."""
    lines = []
    for key, name in (("regret_static", "one for all"), ("regret_informed", found["informed"])):
        if key in found:
            mean, error = found[key]
            lines.append(f"regret, reward {name} less the learned one: {mean:.3f} ± {error:.3f}")
    return lines


# Drawing and saving


def folder_of(name):
    """Where a run's pictures go: its folder. Those of a model that ships go to runs/."""
    path = Path(name)
    if path.exists():
        return path if path.is_dir() else path.parent
    folder = Path("runs", f"{name}-shipped")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def draw(group):
    """Draws the pictures of each run of a group, and one of all. Returns their folders."""
    folders = []
    for run in group:
        if "blockdrop" not in run.results and "enumeration" not in run.numbers:
            continue
        folder = folder_of(run.name)
        folders.append(str(folder))
        if "blockdrop" in run.results:
            u = run.results["blockdrop"].u
            test, classes = run.data.test, run.data.classes
            pictures.keep_rates(u, test.labels.cpu(), classes, folder / "keep_rates.png")
            pictures.extremes(test, u, classes, folder / "extremes.png")
            draw_tradeoff([run], folder / "tradeoff.png")
        if "enumeration" in run.numbers:
            found = run.numbers["enumeration"]
            spots = {}
            for name, row in (found["policies"] | found["frontier"]).items():
                spots[name] = (row["flops"], row["accuracy"])
            points = {name: [spots[name]] for name in found["policies"]}
            frontier = {"single policies": [spots[name] for name in found["frontier"]]}
            pictures.tradeoff(points, folder / "enumeration.png", frontier)
    if folders and len(group) > 1:
        draw_tradeoff(group, folder_of(group[0].name) / f"tradeoff_of_{len(group)}_runs.png")
    return folders


def draw_tradeoff(group, path):
    """The trade-off picture of runs that differ in their seed."""
    points = {}
    for name in group[0].results:
        rows = [run.results[name] for run in group]
        points[label(name, group[0].settings)] = [(row.flops_mean, row.accuracy) for row in rows]
    lines = {}
    if " ".join(group[0].data.classes) == pictures.CIFAR10:
        for name, line in pictures.PUBLISHED.items():
            lines[f"{name}, paper"] = [(1e8 * flops, percent / 100) for flops, percent in line]
    pictures.tradeoff(points, path, lines)


def check_json(path):
    """ValueError if something stands at the path that --json has not written."""
    ours = not path.exists()
    if path.is_file():
        try:
            ours = path.stat().st_size == 0 or "baselines" in json.loads(path.read_text())
        except (ValueError, TypeError, OSError):
            ours = False
    if not ours:
        raise ValueError(f"{path} is not from --json and would be lost; name another file")


# Images of one's own


def answer(name, named, device, console):
    """Says what a run's model makes of image files, and draws them. Returns the exit code."""
    state, settings, model = open_run(name, device)
    size = settings.image_size or {"folder": 0, "imagenet": 224}.get(settings.data, 32)
    short_side = STREAM_SIZE if settings.data == "imagenet" else None
    bar = "□■" if console.encoding.startswith("utf") else ".#"
    short_side = STREAM_SIZE if settings.data == "imagenet" else None
    paths = files_in(named)
    width = max(len(path) for path in paths)
    answered, blocks, names = [], [], []
    for path in paths:
        try:
            image = images.load_image(path, size, short_side)
        except ValueError as problem:
            complain(problem)
            continue
        with torch.inference_mode():
            logits, u = model(image[None].to(device))
        probability, label = logits[0].softmax(0).max(0)
        flops, full = evaluation.flops_under(model, u.cpu(), image.shape[1:])
        answered.append(image)
        blocks.append(int(u.sum()))
        names.append(str(state["classes"][label]))
        which = "".join(bar[int(keep)] for keep in u[0])
        prediction = f"{names[-1]} {100 * probability:.1f} %"
        saved = (
            f"{blocks[-1]} of {u.shape[1]} blocks, {100 * (1 - flops.item() / full):.0f} % saved"
        )
        console.print(f"{path:<{width}}  {which}  {saved}: {prediction}", soft_wrap=True)
    if answered:
        picture = folder_of(name) / "images.png"
        try:
            pictures.answers(answered, blocks, names, picture)
            console.print(f"picture: {picture}", soft_wrap=True)
        except (ValueError, OSError) as problem:
            complain(f"the picture could not be saved: {problem}")
    return 0 if len(answered) == len(paths) else 2


def files_in(named):
    """The image files that are named or lie in named folders; ValueError if there are none."""
    paths = []
    for name in named:
        paths += images.scan(name, []) if Path(name).is_dir() else [name]
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
        runs = [evaluate(name, options, device) for name in options.runs]
    except (ValueError, OSError) as problem:
        complain(problem)
        return 2

    groups = {}  # runs that differ in MAY_DIFFER only
    for run in runs:
        settings = vars(run.settings).items()
        alike = {name: value for name, value in settings if name not in MAY_DIFFER}
        groups.setdefault(str((alike, *run.results)), []).append(run)
    # Saved before anything is printed; what cannot be saved is said and ends nothing.
    code = 0
    folders = []
    for group in groups.values():
        try:
            folders += draw(group)
        except (ValueError, OSError) as problem:
            complain(f"the pictures could not be saved: {problem}")
    if options.json:
        numbers = [run.numbers for run in runs]
        first = numbers[0] | ({"runs": numbers} if len(numbers) > 1 else {})
        try:
            write_safely(Path(options.json), (json.dumps(first, indent=1) + "\n").encode())
        except (ValueError, OSError) as problem:
            complain(problem)
            code = 2
    for group in groups.values():
        report(console, group)
    if folders:
        console.print(f"pictures in {', '.join(folders)}", soft_wrap=True)
    return code


if __name__ == "__main__":
    sys.exit(main())

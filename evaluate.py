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
from functools import partial
from pathlib import Path

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table

from blockdrop_min.lab import evaluation, images, pictures
from blockdrop_min.lab.checkpoint import read, restore
from blockdrop_min.lab.data import STREAM_SIZE, Data, load_data
from blockdrop_min.lab.enumeration import enumerate_policies
from blockdrop_min.lab.files import check_plain, write_safely
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
    parser = Parser(prog="evaluate.py", description=about, allow_abbrev=False)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, or demo")
    parser.add_argument("--json", metavar="FILE", help="also write the numbers of the (first) run")
    parser.add_argument("--enumerate", action="store_true", help="also run all 2^K policies")
    parser.add_argument("--images", nargs="+", metavar="FILE", help="only answer for these images")
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
        run = partial(evaluation.run_policy, model, data.test, data.crop, workers=workers)
        results = {"full": run(torch.ones(model.resnet.num_blocks))}
        if trained:
            results["blockdrop"] = run()
    return Run(name, settings, data, results, numbers | numbers_of(data.test, results))


def numbers_of(test, results):
    """What --json writes of the results on the test split, as a dict."""
    ours = results.get("blockdrop", results["full"])
    numbers = {name: value for name, value in vars(ours).items() if not torch.is_tensor(value)}
    numbers |= {"images": len(test), "num_blocks": ours.u.shape[1]}
    numbers["full_accuracy"] = results["full"].accuracy
    numbers["baselines"] = {name: result.row() for name, result in results.items()}
    if test.difficulty is not None:
        difficulty = test.difficulty.cpu()
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
    return settings.policy if fixed else NAMES[name]


def mean_std(values, form, std=None):
    """The mean of some numbers with their standard deviation, or with `std` if there is but one."""
    std = statistics.stdev(values) if len(values) > 1 else std
    mean = form.format(statistics.mean(values))
    return mean if std is None else f"{mean} ± {form.format(std)}"


def make_table(headings, rows):
    """A table of at most 80 columns: names wrap, numbers are never cut."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="right" if i else "left", no_wrap=i > 0, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def results_table(group):
    """The table of runs that differ in their seed: means over runs, ± over runs (one: images)."""
    rows = []
    for name, one in group[0].results.items():
        results = [run.results[name] for run in group]
        flops = [result.flops_mean / 1e6 for result in results]
        row = [
            label(name, group[0].settings),
            mean_std([100 * result.accuracy for result in results], "{:.2f}"),
            mean_std([result.blocks_mean for result in results], "{:.2f}", one.blocks_std),
            mean_std(flops, "{:.1f}", one.flops_std / 1e6),
            mean_std([100 * result.flops_saved for result in results], "{:.1f}"),
            mean_std([result.distinct_policies for result in results], "{:.0f}"),
        ]
        rows.append(row)
    headings = ["policy", "accuracy %", "blocks", "FLOPs (M)", "saved %", "policies"]
    return make_table(headings, rows)


def enumeration_table(found):
    """What policies achieve, by how they are chosen; below, the best ones for all images."""
    rows = []
    for name, row in (found["policies"] | found["frontier"]).items():
        reward = f"{row['reward']:.3f} ± {row['reward_error']:.3f}"
        numbers = [f"{100 * row['accuracy']:.2f}", f"{row['blocks']:.2f}"]
        rows.append([name, reward, *numbers, f"{row['flops'] / 1e6:.1f}", row["needs"]])
    return make_table(["chosen", "reward", "acc. %", "blocks", "FLOPs (M)", "needs"], rows)


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
    """Prints the results of runs that differ in their seed: a table, and lines on each run."""
    settings = group[0].settings
    names = ", ".join(run.name for run in group)
    network = f"ResNet-{settings.depth} on {settings.data}"
    console.print(f"{names}: {network}, {len(group)} run(s), test set")
    console.print(results_table(group))
    for run in group:
        numbers = run.numbers
        if "best static" in run.results:
            digits = "".join(str(int(kept)) for kept in run.results["best static"].u[0])
            console.print(f"{run.name}: best static policy {digits}")
            console.print(f"{run.name}: {verdict(run)}")
        if "blockdrop" in run.results and "rank_correlation" in numbers:
            text = f"blocks and difficulty: rank correlation {numbers['rank_correlation']:.2f}"
            means = numbers["blocks_by_difficulty"]
            blocks = ", ".join("none" if mean is None else f"{mean:.2f}" for mean in means)
            console.print(f"{run.name}: {text}; blocks by quarter of difficulty: {blocks}")
        if "enumeration" in numbers:
            report_enumeration(console, run.name, numbers["enumeration"])


def report_enumeration(console, name, found):
    """Prints what counting has found, and how far the learned policy is from it."""
    text = f"all policies, counted; reward at gamma {found['gamma']:g}"
    console.print(f"{name}: {text}, what needs the label is a bound")
    console.print(enumeration_table(found))
    for key, rival in (("regret_static", "one for all"), ("regret_informed", found["informed"])):
        if key in found:
            regret, error = found[key]
            text = f"regret, reward {rival} less the learned one: {regret:.3f} ± {error:.3f}"
            console.print(f"{name}: {text}")


# Drawing and saving


def folder_of(name):
    """Where a run's pictures go: its folder. Those of a model that ships go to runs/."""
    path = Path(name)
    if not path.exists():
        path = Path("runs", f"{name}-shipped")
        path.mkdir(parents=True, exist_ok=True)
    return path.parent if path.is_file() else path


def draw(run, group):
    """Draws a run's pictures; in the trade-off, the means over a group of runs."""
    folder = folder_of(run.name)
    if "blockdrop" in run.results:
        u = run.results["blockdrop"].u
        test, classes = run.data.test, run.data.classes
        pictures.keep_rates(u, test.labels.cpu(), classes, folder / "keep_rates.png")
        pictures.extremes(test, u, classes, folder / "extremes.png")
        draw_tradeoff(group, folder / "tradeoff.png")
    if "enumeration" in run.numbers:
        found = run.numbers["enumeration"]
        points = {name: [spot(row)] for name, row in found["policies"].items()}
        lines = {"single policies": [spot(row) for row in found["frontier"].values()]}
        pictures.tradeoff(points, folder / "enumeration.png", lines)


def spot(row):
    """Where a row of the JSON lies in the trade-off picture."""
    return row["flops"], row["accuracy"]


def draw_tradeoff(group, path):
    """The trade-off picture of runs that differ in their seed."""
    points = {}
    for name in group[0].results:
        rows = [run.results[name].row() for run in group]
        points[label(name, group[0].settings)] = [spot(row) for row in rows]
    cifar10 = " ".join(group[0].data.classes) == pictures.CIFAR10
    pictures.tradeoff(points, path, pictures.PUBLISHED if cifar10 else {})


def check_json(path):
    """ValueError if something stands at the path that --json has not written."""
    check_plain(path)
    content = path.read_bytes() if path.exists() else b""
    if content and b'"baselines": {' not in content:
        raise ValueError(f"{path} is not from --json and would be lost; name another file")


# Images of one's own


def answer(name, named, device, console):
    """Says what a run's model makes of image files, and draws them. Returns the exit code."""
    state, settings, model = open_run(name, device)
    size = settings.image_size or {"folder": 0, "imagenet": 224}.get(settings.data, 32)
    short_side = STREAM_SIZE if settings.data == "imagenet" else None
    bar = "□■" if console.encoding.startswith("utf") else ".#"
    paths = files_in(named)
    width = max(len(path) for path in paths)
    answered = []
    for path in paths:
        try:
            image = images.load_image(path, size, short_side)
        except ValueError as problem:
            complain(problem)
            continue
        with torch.inference_mode():
            logits, u = model(image[None].to(device))
        probability, index = logits[0].softmax(0).max(0)
        flops, full = evaluation.flops_under(model, u.cpu(), image.shape[1:])
        blocks = int(u.sum())
        best = state["classes"][index]
        answered.append((image, blocks, best))
        which = "".join(bar[int(keep)] for keep in u[0])
        kept = f"{blocks} of {u.shape[1]} blocks"
        saved = f"{100 * (1 - flops.item() / full):.0f} % saved"
        prediction = f"{best} {100 * probability:.1f} %"
        console.print(f"{path:<{width}}  {which}  {kept}, {saved}: {prediction}")
    if answered:
        picture = folder_of(name) / "images.png"
        if saved_by(pictures.answers, answered, picture):
            console.print(f"picture: {picture}")
    return 0 if len(answered) == len(paths) else 2


def files_in(named):
    """The image files that are named or lie in named folders; ValueError if there are none."""
    paths = []
    for name in named:
        paths += images.scan(name, []) if Path(name).is_dir() else [name]
    if not paths:
        raise ValueError(f"there are no images in {', '.join(named)}")
    return paths


def saved_by(save, *arguments):
    """Whether a function could save something; if not, a line says why, and the program goes on."""
    try:
        save(*arguments)
        return True
    except (ValueError, OSError) as problem:
        complain(f"not saved: {problem}")
        return False


def main(arguments=None):
    """`python evaluate.py`, with these arguments or the command line's. Returns the exit code."""
    options = make_parser().parse_args(arguments)
    console = safe_console(soft_wrap=True)
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
    written = True
    folders = []
    for group in groups.values():
        for run in group:
            drawn = "blockdrop" in run.results or "enumeration" in run.numbers
            if drawn and saved_by(draw, run, group if run is group[0] else [run]):
                folders.append(str(folder_of(run.name)))
    if options.json:
        numbers = [run.numbers for run in runs]
        first = numbers[0] | ({"runs": numbers} if len(numbers) > 1 else {})
        content = (json.dumps(first, indent=1) + "\n").encode()
        written = saved_by(write_safely, options.json, content)
    for group in groups.values():
        report(console, group)
    if folders:
        console.print(f"pictures in {', '.join(folders)}")
    return 0 if written else 2


if __name__ == "__main__":
    sys.exit(main())

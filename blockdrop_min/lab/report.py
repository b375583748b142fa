"""A run's results: measured on the test set, told as table, words and JSON, drawn as pictures.

The test set is read nowhere else. Read after rivals.py and enumeration.py.
"""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, stdev

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table

from . import pictures
from .checkpoint import read, restore
from .data import STREAM_SIZE, Data, load_data
from .enumeration import enumerate_policies
from .evaluation import flops_under, rank_correlation, run_policy
from .files import write_safely
from .images import load_image, scan
from .process import choose_device
from .program import complain, console, shown
from .rivals import dealt_loss, measure_rivals, worth_of_looking
from .settings import Settings, unflat
from .weights import with_resnet

# What may differ between the runs of one table, and what may not between a run and its rival.
MAY_DIFFER = ("seed", "resnet", "device", "workers", "data_dir", "rivals")
SHARED = ("data", "image_size", "train_images", "val_images", "family", "depth", "width", "seed")
SHARED += ("finetune",)
FAIR = "trained static"  # the fair rival nearest in FLOPs; others have a number behind it
NAMES = {  # of the rows in tables and pictures
    "full": "full network",
    "pretrained": "full network, before finetuning",
    "blockdrop": "BlockDrop",
    "trained first": "FirstK, trained as long",
    "trained random": "RandomK, trained as long",
    "trained distribute": "DistributeK, trained as long",
    "first": "FirstK, untrained",
    "random": "RandomK, untrained",
    "distribute": "DistributeK, untrained",
    "best static": "best static, untrained",
    "blind": "same rates, untrained",
}
warn = partial(complain, "evaluate.py")
named = partial(shown, limit=1000)  # a path


@dataclass
class Run:
    """A run, measured. results: name -> `Result`.    numbers: what --json writes."""

    name: str
    settings: Settings
    data: Data
    results: dict
    numbers: dict


# Measuring


def open_run(name, device):
    """A run's checkpoint, its settings, and its model on the device."""
    state, warning = read(name)
    if warning:
        warn(warning)
    model = restore(state, name).to(device, memory_format=torch.channels_last)
    return state, unflat(state["settings"]), model


def measure(name, device, data_dir=None, enumerated=False):
    """A `Run`, measured on the test set. ValueError if run and data do not fit together."""
    state, settings, model = open_run(name, device)
    sizes = settings.image_size, settings.train_images, settings.val_images
    data = load_data(settings.data, data_dir or settings.data_dir, *sizes, with_test=True)
    data = data.to(device)
    if list(data.classes) != list(state["classes"]):
        theirs, ours = (shown(", ".join(names), 200) for names in (state["classes"], data.classes))
        raise ValueError(f"{name} was trained on the classes {theirs}, but the data has {ours}")
    seed, workers = settings.seed, settings.workers
    run = partial(run_policy, model, data.test, data.crop, workers=workers)
    all_on = torch.ones(model.resnet.num_blocks)
    results = {"full": run(all_on)}
    begun = pretrained(name, settings, model) if state["stage"] == "finetune" else None
    if begun:
        results["pretrained"] = run_policy(begun, data.test, data.crop, all_on, workers=workers)
    numbers = {"run": str(name)}
    learned = None
    if state["stage"] != "pretrain":
        results["blockdrop"] = run()
        learned = results["blockdrop"] if settings.policy == "learned" else None
    if enumerated:
        finetuned = state["stage"] == "finetune"
        gamma = settings.finetune.gamma if finetuned else settings.curriculum.gamma
        numbers["enumeration"] = enumerate_policies(model, data, gamma, learned, workers)
    if learned:
        rivals = trained_rivals(name, state, settings, data, device)
        fair = [rival for policy, rival in rivals.items() if policy.isdigit()]
        numbers["worth_of_looking"] = worth_of_looking(learned, fair)
        fair.sort(key=lambda rival: abs(rival.flops_mean - learned.flops_mean))
        results |= {f"{FAIR} {i}" if i else FAIR: rival for i, rival in enumerate(fair)}
        kinds = {f"trained {kind.partition(':')[0]}": rival for kind, rival in rivals.items()}
        results |= {name: rival for name, rival in kinds.items() if name in NAMES}
        results |= measure_rivals(model, data, learned, seed, workers)
        numbers["dealt_loss"] = dealt_loss(model, data, learned, seed, workers)
    return Run(name, settings, data, results, numbers | numbers_of(data.test, results))


def pretrained(name, settings, model):
    """The model with the ResNet that its run began with; None where that file is gone."""
    own = folder_of(name) / "resnet.pt"
    file = own if own.is_file() else Path(settings.resnet)
    if not file.is_file():
        return None
    try:
        return with_resnet(model, file)
    except (ValueError, OSError) as problem:
        warn(f"{file} is not compared: {problem}")
        return None


def trained_rivals(name, state, settings, data, device):
    """A run's fair rivals, one policy for all images each, trained as long: it -> `Result`.

    They are the runs in its folders static-*. Those that do not compare are said and left out.
    """
    found = {}
    end = "finetune", settings.finetune.epochs
    for folder in sorted(folder_of(name).glob("static-*")):
        try:
            theirs, its, model = open_run(folder, device)
            differ = [name for name in SHARED if getattr(its, name) != getattr(settings, name)]
            if differ or its.policy == "learned":
                raise ValueError(f"it has another {', '.join(differ) or 'kind of policy'}")
            if {(reached["stage"], reached["epoch"]) for reached in (state, theirs)} != {end}:
                raise ValueError("finetuning has not come to its end in both")
            found[its.policy] = run_policy(model, data.test, data.crop, workers=settings.workers)
        except ValueError as problem:
            warn(f"{folder} is not compared: {problem}")
    return found


def numbers_of(test, results):
    """What --json writes of the results on the test split, as a dict."""
    ours = results.get("blockdrop", results["full"])
    numbers = {name: value for name, value in vars(ours).items() if not torch.is_tensor(value)}
    numbers |= {"images": len(test), "num_blocks": ours.u.shape[1]}
    numbers["full_accuracy"] = results["full"].accuracy
    numbers["baselines"] = {name: result.row() for name, result in results.items()}
    if test.difficulty is not None:
        blocks, difficulty = ours.u.sum(1), test.difficulty.cpu()
        quarters = (4 * difficulty).long().clamp(max=3)
        parts = [blocks[quarters == quarter] for quarter in range(4)]
        means = [part.mean().item() if len(part) else None for part in parts]
        numbers["rank_correlation"] = rank_correlation(blocks, difficulty)
        numbers["blocks_by_difficulty"] = means
    return numbers


# Printing


def table(headings, rows):
    """A table of at most 80 columns: names wrap, numbers are never cut."""
    made = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for i, heading in enumerate(headings):
        made.add_column(heading, justify="right" if i else "left", no_wrap=i > 0, overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made


def mean_std(values, form, std=None):
    """The mean of some numbers with their standard deviation, or with `std` if there is but one."""
    std = stdev(values) if len(values) > 1 else std
    mean = form.format(fmean(values))
    return mean if std is None else f"{mean} ± {form.format(std)}"


def label(name, group):
    """What a row of a group's results is called."""
    if name.startswith(FAIR):
        blocks = fmean(run.results[name].blocks_mean for run in group)
        return f"one policy of {blocks:.3g} block{'s' * (blocks != 1)}, trained as long"
    policy = group[0].settings.policy
    return policy if name == "blockdrop" and policy != "learned" else NAMES[name]


def results_table(group):
    """The table of runs that differ in their seed: means over runs, ± over runs (one: images)."""
    rows = []
    for name, one in group[0].results.items():
        results = [run.results[name] for run in group]
        row = [
            label(name, group),
            mean_std([100 * r.accuracy for r in results], "{:.2f}"),
            mean_std([r.blocks_mean for r in results], "{:.2f}", one.blocks_std),
            mean_std([r.flops_mean / 1e6 for r in results], "{:.2f}", one.flops_std / 1e6),
            mean_std([100 * r.flops_saved for r in results], "{:.1f}"),
            mean_std([r.distinct_policies for r in results], "{:.0f}"),
        ]
        rows.append(row)
    return table(["policy", "accuracy %", "blocks", "FLOPs (M)", "saved %", "policies"], rows)


def enumeration_table(found):
    """What policies achieve, by how they are chosen; below, the best ones for all images."""
    rows = []
    for name, row in (found["policies"] | found["frontier"]).items():
        numbers = [f"{100 * row['accuracy']:.2f}", f"{row['blocks']:.2f}"]
        numbers.append(f"{row['flops'] / 1e6:.2f}")
        rows.append([name, "{:.3f} ± {:.3f}".format(*row["reward"]), *numbers, row["needs"]])
    return table(["chosen", "reward", "acc. %", "blocks", "FLOPs (M)", "needs"], rows)


def verdict(run):
    """What came out, in words."""
    ours = run.results["blockdrop"]
    full = [run.results[name].accuracy for name in ("full", "pretrained") if name in run.results]
    gained = 100 * (ours.accuracy - max(full))  # finetuning may spoil the full network
    loss, error = run.numbers["dealt_loss"]
    text = f"BlockDrop saves {100 * ours.flops_saved:.0f} % of the FLOPs at {gained:+.1f} points; "
    if ours.distinct_policies == 1:
        text += "one policy for all images."
    else:
        text += f"{ours.distinct_policies} policies, which lose {100 * loss:.1f} ± "
        text += f"{100 * error:.1f} points if they are dealt to other images: "
        text += "the choice is one per image." if loss > 2 * error else "it is not per image."
    if run.numbers["worth_of_looking"]:
        worth, error = run.numbers["worth_of_looking"]
        text += " At equal FLOPs, looking at the image is worth "
        text += f"{100 * worth:.1f} ± {100 * error:.1f} points."
    return text


def tell(screen, group):
    """Prints the results of runs that differ in their seed: a table, and lines on each run."""
    settings = group[0].settings
    names = ", ".join(named(run.name) for run in group)
    network = f"ResNet-{settings.depth} on {settings.data}"
    screen.print(f"{names}: {network}, {len(group)} run(s), test set")
    screen.print(results_table(group))
    for run in group:
        say = partial(screen.print, f"{named(run.name)}:")
        numbers = run.numbers
        if "dealt_loss" in numbers:
            say("best static policy", numbers["baselines"]["best static"]["policy"])
            say(verdict(run))
        if "blockdrop" in run.results and "rank_correlation" in numbers:
            means = numbers["blocks_by_difficulty"]
            blocks = ", ".join("none" if mean is None else f"{mean:.2f}" for mean in means)
            text = f"blocks and difficulty: rank correlation {numbers['rank_correlation']:.2f}"
            say(f"{text}; blocks by quarter of difficulty: {blocks}")
        if "enumeration" in numbers:
            found = numbers["enumeration"]
            text = f"all policies, counted; reward at gamma {found['gamma']:g}"
            say(f"{text}, what needs the label is a bound")
            screen.print(enumeration_table(found))


# Drawing


def folder_of(name):
    """Where a run's pictures go: its folder. Those of a model that ships go to runs/."""
    path = Path(name)
    if not path.exists():
        return Path("runs", f"{name}-shipped")
    return path.parent if path.is_file() else path


def spot(group, name):
    """Where a row lies in a trade-off picture: FLOPs and accuracy, means over a group of runs."""
    results = [run.results[name] for run in group]
    return fmean(r.flops_mean for r in results), fmean(r.accuracy for r in results)


def curves(groups):
    """The two lines of a trade-off picture, over groups of runs: with and without a look."""
    ours, fair = [], []
    for group in groups:
        learned = group[0].settings.policy == "learned"
        names = group[0].results.keys()
        ours += [spot(group, name) for name in names if learned and name == "blockdrop"]
        fair += [spot(group, name) for name in names if name.startswith(FAIR)]
        fair += [spot(group, name) for name in names if not learned and name == "blockdrop"]
    lines = {"BlockDrop": sorted(ours), "one policy, trained as long": sorted(fair)}
    return {name: line for name, line in lines.items() if line}


def draw(run):
    """Draws the pictures of a run. Returns their folder."""
    folder = folder_of(run.name)
    folder.mkdir(parents=True, exist_ok=True)
    u = run.results["blockdrop"].u
    pictures.extremes(run.data.test, u, run.data.classes, folder / "extremes.png")
    others = [name for name in run.results if name in NAMES and name != "blockdrop"]
    series = curves([[run]]) | {NAMES[name]: [spot([run], name)] for name in others}
    if "enumeration" in run.numbers:
        best = run.numbers["enumeration"]["frontier"].values()
        series["best static, counted"] = [(row["flops"], row["accuracy"]) for row in best]
    pictures.tradeoff(series, folder / "tradeoff.png")
    return folder


def main(names, *, data_dir=None, device="auto", json_path=None, enumerated=False):
    """Measures runs on the test set, prints and saves what came out. Returns the exit code, 0.

    names: runs' folders, or the name of a model that ships. Runs that differ in their seed share a
        table; groups of runs that differ in more share a picture, curve.png in the first's folder.
    data_dir: the folder with the data; None: as in training.
    json_path: where to write the numbers.
    enumerated: run all 2^K policies, too.
    Raises ValueError if a run cannot be measured, and OSError if something cannot be saved.
    """
    screen = console(soft_wrap=True)
    screen.width = max(80, screen.width)
    device = choose_device(device)
    runs = [measure(name, device, data_dir, enumerated) for name in names]
    groups = {}  # of runs that differ in MAY_DIFFER only
    for run in runs:
        settings = vars(run.settings).items()
        alike = {name: value for name, value in settings if name not in MAY_DIFFER}
        groups.setdefault(str((alike, *run.results)), []).append(run)
    groups = list(groups.values())
    for group in groups:
        tell(screen, group)
    if json_path:
        every = {"runs": [run.numbers for run in runs]} if len(runs) > 1 else {}
        write_safely(json_path, json.dumps(runs[0].numbers | every, indent=1).encode())
    for run in runs:
        if "blockdrop" in run.results:
            screen.print(f"pictures in {named(draw(run))}")
    groups = [group for group in groups if "blockdrop" in group[0].results]
    if len(groups) > 1:
        path = folder_of(names[0]) / "curve.png"
        pictures.tradeoff(curves(groups), path)
        screen.print(f"all runs in {named(path)}")
    return 0


# Images of one's own


def answer(name, files, device="auto"):
    """Says what a run's model makes of image files, or folders of them. Returns the exit code."""
    screen = console(soft_wrap=True)
    device = choose_device(device)
    state, settings, model = open_run(name, device)
    size = settings.image_size or {"folder": 0, "imagenet": 224}.get(settings.data, 32)
    short_side = STREAM_SIZE if settings.data == "imagenet" else None
    bar = "□■" if screen.encoding.startswith("utf") else ".#"
    paths = [path for file in files for path in (scan(file, []) if Path(file).is_dir() else [file])]
    if not paths:
        raise ValueError(f"there are no images in {', '.join(files)}")
    width = max(len(named(path)) for path in paths)
    code = 0
    for path in paths:
        try:
            image = load_image(path, size, short_side)
        except (ValueError, OSError) as problem:
            warn(problem)
            code = 2
            continue
        with torch.inference_mode():
            logits, u = model(image[None].to(device))
        probability, index = logits[0].softmax(0).max(0)
        flops, full = flops_under(model, u.cpu(), image.shape[1:])
        which = "".join(bar[int(keep)] for keep in u[0])
        saved = 100 * (1 - flops.item() / full)
        kept = f"{int(u.sum())} of {u.shape[1]} blocks, {saved:.0f} % saved"
        best = f"{shown(state['classes'][index])} {100 * probability:.1f} %"
        screen.print(f"{named(path):<{width}}  {which}  {kept}: {best}")
    return code

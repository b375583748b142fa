"""Trains BlockDrop: pretrain the ResNet, learn the policy with a curriculum, finetune both. `python train.py --help`"""

import json
import math
import shlex
import signal
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import asdict

import torch
import torchvision

import evaluate
from blockdrop_min import free_blocks, load_foreign
from blockdrop_min.checkpoint import NAME, PREVIOUS, build, read, restore, save, write_safely
from blockdrop_min.data import augment, load_data, seeded
from blockdrop_min.log import Log
from blockdrop_min.report import run_policy
from blockdrop_min.settings import STAGES, choose_device, flag, parse
from blockdrop_min.training import fixed_policy_step, policy_step, pretrain_step, set_mode, warm_step
from blockdrop_min.weights import load_state, read_file

MAY_CHANGE = {"stages", "pretrain_epochs", "curriculum_epochs", "finetune_epochs", "device", "workers"}  # on going on


# Setting up


def open_folder(out, settings):
    """Makes the run's folder, tries to write to it, and gives the checkpoint to go on from, or None.

    Raises ValueError if the folder holds a run with other settings, and OSError if it cannot be written to.
    """
    out.mkdir(parents=True, exist_ok=True)
    mine, state = asdict(settings), read(out) if (out / NAME).exists() or (out / PREVIOUS).exists() else None
    if state:
        theirs = state["settings"]
        differ = [f"{flag(name)} {theirs.get(name)} there, {mine[name]} here"
                  for name in mine if theirs.get(name) != mine[name] and name not in MAY_CHANGE]  # fmt: skip
        if differ:
            raise ValueError(f"{out} holds a run with other settings ({'; '.join(differ)}); use them, or another --out")
    with tempfile.TemporaryFile(dir=out) as file:
        file.write(b"can this folder be written to?")
    return state


def make_model(settings, data, state, out):
    """The model as the checkpoint has it, or a new one, started from the files that the settings name."""
    torch.manual_seed(settings.seed)
    model = restore(state, out) if state else build(settings, len(data.classes), data.mean, data.std)
    if settings.policy == "learned":  # a classifier on the policy network's features, for the warm start alone
        model.classifier = torch.nn.Linear(model.policy.features.num_features, len(data.classes))
    if state:
        if settings.policy == "learned":
            load_state(model.classifier, state.get("classifier", {}), f"{out}, classifier")
        return model
    if settings.policy == "learned":
        torch.nn.init.constant_(model.policy.logit.bias, settings.keep_bias)
    if settings.resnet:
        load_foreign(model.resnet, settings.resnet)
    if settings.policy_start:
        model.policy.start_from(read_file(settings.policy_start))
    return model


def make_optimizer(model, stage, settings):
    """SGD for the ResNet in pretraining, Adam without weight decay in the other stages (authors' code)."""
    if stage == "pretrain":
        return torch.optim.SGD(model.resnet.parameters(), settings.pretrain_lr, momentum=0.9, nesterov=True, weight_decay=5e-4)
    return torch.optim.Adam(model.parameters(), getattr(settings, f"{stage}_lr"))  # what is frozen has no gradient


def learning_rate(schedule, progress):
    """The factor on the learning rate at this share of a stage's steps."""
    if schedule == "step":
        return 1.0 if progress < 0.8 else 0.1
    warm = 0.2
    return progress / warm if progress < warm else 0.5 * (1 + math.cos(math.pi * (progress - warm) / (1 - warm)))


# Training


def take_step(model, stage, settings, x, y, free, progress, generator):
    """The loss of one step of a stage, and what it saw of each image. progress: the share of the stage that is done."""
    if stage == "pretrain":  # plain at first: dropping sets in after a fifth of the steps, fully after two fifths
        return pretrain_step(model, x, y, settings.drop * min(1.0, max(0.0, progress / 0.2 - 1)), generator)
    if settings.policy != "learned":
        return fixed_policy_step(model, x, y)
    if stage == "curriculum" and not free.any():
        return warm_step(model, x, y)
    if stage == "curriculum":
        return policy_step(model, x, y, free, settings.alpha, settings.beta, settings.curriculum_gamma, generator)
    return policy_step(model, x, y, free, settings.alpha, settings.finetune_beta, settings.finetune_gamma, generator,
                       joint=True, full_share=settings.full_share)  # fmt: skip


def free_in(stage, epoch, settings, num_blocks):
    """Which blocks the policy decides on in this epoch: none before the curriculum and in its warm start, then its own."""
    if stage != "curriculum" or epoch < settings.warm_epochs:
        return torch.full((num_blocks,), stage == "finetune")
    opening = math.ceil(settings.free_by * (settings.curriculum_epochs - settings.warm_epochs))
    return free_blocks(epoch - settings.warm_epochs, num_blocks, opening or None)


class Stop(Exception):
    """The run was asked to stop by a signal; `code` is the exit code."""

    def __init__(self, number):
        self.code = 128 + number


@contextmanager
def signals():
    """Notes the first SIGINT or SIGTERM in the list that it gives, so that a step can end; a second one stops at once."""
    asked = []

    def note(number, frame):
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def train_one_epoch(model, optimizer, data, state, settings, log, asked):
    """The epoch that `state` stands in, from its step on. Leaves the position and the sums over images in `state`.

    Everything random in a step comes from a generator whose seed is (seed, stage, epoch, step), and the learning rate
    from its number, so that a run that goes on after any step does exactly what it would have done.
    Raises Stop when asked to, after a step, and FloatingPointError, before the optimizer, if a number is not finite.
    """
    stage, epoch, device = state["stage"], state["epoch"], data.train.labels.device
    batch, epochs = getattr(settings, f"{stage}_batch"), settings.epochs(stage)
    order = torch.randperm(len(data.train), generator=seeded(settings.seed, stage, epoch))[state["step"] * batch :]
    steps = math.ceil(len(data.train) / batch)
    free = free_in(stage, epoch, settings, model.resnet.num_blocks)
    log.epoch(stage, epoch, epochs, steps, state["step"])
    set_mode(model, stage)
    for x, y in data.train.batches(batch, order, settings.workers):
        generator = seeded(settings.seed, stage, epoch, state["step"], device=device)
        progress = (epoch + state["step"] / steps) / epochs
        x = model.prepare(augment(x, data.crop, data.pad, generator))
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.amp):
            loss, seen = take_step(model, stage, settings, x, y, free, progress, generator)
        optimizer.zero_grad()
        loss.backward()
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not torch.isfinite(loss + torch.nn.utils.get_total_norm(gradients)):
            raise FloatingPointError("the loss or a gradient is not finite")
        for group in optimizer.param_groups:
            group["lr"] = getattr(settings, f"{stage}_lr") * learning_rate(settings.schedule, progress)
        optimizer.step()
        for name, value in {"loss": loss.detach() * len(x), "images": torch.tensor(len(x)), **seen}.items():
            state["sums"][name] = state["sums"].get(name, 0.0) + value.double().sum().cpu()
        state["step"] += 1
        log.step(state["step"])
        if asked:
            raise Stop(asked[0])
    if not all(p.isfinite().all() for p in model.parameters()):
        raise FloatingPointError("a weight is not finite after the last step")


def finish_epoch(model, data, state, settings, seconds):
    """Validates, adds the epoch's row to the metrics, and moves the position on. Returns the row."""
    stage, sums = state["stage"], {name: float(total) for name, total in state["sums"].items()}
    free = free_in(stage, state["epoch"], settings, model.resnet.num_blocks)
    result = run_policy(model, data.val, data.crop, u=torch.ones(len(free)) if stage == "pretrain" else None, free=free)
    row = {
        "stage": stage, "epoch": state["epoch"], "epochs": settings.epochs(stage), "seconds": round(seconds, 2),
        "free": int(free.sum()), "loss": sums["loss"] / sums["images"], "train_accuracy": sums["correct"] / sums["images"],
        **{name: sums[name] / sums["images"] if name in sums else None for name in ("R", "A")},
        "accuracy": result.accuracy, "blocks_mean": result.blocks_mean, "blocks_std": result.blocks_std,
        "distinct_policies": result.distinct_policies,
    }  # fmt: skip
    state["metrics"].append(row)
    state.update(epoch=state["epoch"] + 1, step=0, sums={})
    return row


def train(model, data, state, settings, out, log):
    """All stages, each from where `state` stands, with a checkpoint after every epoch and when stopped."""
    with signals() as asked:
        for stage in settings.stage_list:
            if STAGES.index(stage) < STAGES.index(state["stage"]):
                continue
            if state["stage"] != stage:
                state.update(stage=stage, epoch=0, step=0, sums={}, optimizer=None)
            set_mode(model, stage)
            optimizer = make_optimizer(model, stage, settings)
            if state["optimizer"]:
                optimizer.load_state_dict(state["optimizer"])

            def keep():
                networks = {name: network.state_dict() for name, network in model.named_children()}
                save(out, {**state, **networks, "optimizer": optimizer.state_dict()})  # noqa: B023

            while state["epoch"] < settings.epochs(stage):
                start = time.perf_counter()
                try:
                    train_one_epoch(model, optimizer, data, state, settings, log, asked)
                except Stop:
                    keep()
                    raise
                except FloatingPointError as problem:
                    place = f"{stage}, epoch {state['epoch'] + 1}, step {state['step']}"
                    raise FloatingPointError(f"{problem} in {place}; try a smaller --{flag(f'{stage}_lr')}") from None
                log.row(finish_epoch(model, data, state, settings, time.perf_counter() - start))
                keep()
            if stage == "pretrain":
                write_safely(out / "resnet.pt", lambda file: torch.save(model.resnet.state_dict(), file))


def main(arguments=None):
    settings, out, changed = parse(arguments)
    try:
        device = choose_device(settings.device)
        state = open_folder(out, settings)
        if not (state or settings.resnet or settings.epochs("pretrain")):
            raise ValueError("nothing pretrains the ResNet; give it weights with --resnet FILE, or epochs of the stage pretrain")
        data = load_data(settings.data, settings.data_dir, settings.image_size, settings.train_images, settings.val_images)
        if state and list(state["classes"]) != list(data.classes):
            raise ValueError(f"{out} was trained on the classes {state['classes']}, but the data has {data.classes}")
        model = make_model(settings, data, state, out)
        write_safely(out / "settings.json", lambda file: file.write(json.dumps(asdict(settings), indent=1).encode()))
    except (ValueError, OSError) as problem:
        print(f"train.py: {problem}", file=sys.stderr)
        return 2
    data, model = data.to(device), model.to(device, memory_format=torch.channels_last)
    fresh = {"stage": settings.stage_list[0], "epoch": 0, "step": 0, "sums": {}, "optimizer": None, "metrics": []}
    described = {"settings": asdict(settings), "classes": data.classes, "mean": data.mean, "std": data.std, "crop": data.crop}
    state = fresh | (state or {}) | described
    again = shlex.join(["python", "train.py", *(sys.argv[1:] if arguments is None else arguments)])
    with Log() as log:
        log.say(f"preset {settings.preset}, changed: {changed or 'nothing'}; seed {settings.seed}; folder {out}")
        log.say(f"{device}, {torch.get_num_threads()} threads; torch {torch.__version__}, torchvision {torchvision.__version__}")
        if state.get("note"):
            log.say(state.pop("note"))
        if state["metrics"] or state["step"]:
            log.say(f"going on: {state['stage']}, epoch {state['epoch'] + 1}, step {state['step']}")
        log.head()
        for row in state["metrics"]:
            log.row(row)
        try:
            train(model, data, state, settings, out, log)
        except Stop as stop:
            log.say(f"stopped and saved; to go on, run again: {again}")
            return stop.code
        except (FloatingPointError, OSError) as problem:
            log.say(f"train.py: {problem}; the last checkpoint in {out} is good; to go on from it, run again: {again}")
            return 2
    return evaluate.main([str(out), "--data-dir", settings.data_dir, "--device", settings.device])


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("train.py: stopped before its next checkpoint; what was saved stays")

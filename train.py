"""Trains BlockDrop: pretrain the ResNet, learn the policy with a curriculum, finetune both.

`python train.py` trains the preset `demo`; `python train.py --help` lists the settings. `run` sets
a run up, `train` goes through its stages, and `train_one_epoch` is the loop: read that first.
"""

# ruff: noqa: E402
import os
import signal
from multiprocessing import parent_process


def stop(number, frame):
    """Ends the program without a traceback, where no step can be ended first."""
    if parent_process() is None:  # one line, not one more from each process that reads images
        os.write(2, b"train.py: stopped; what was saved stays\n")
    os._exit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, stop)  # before the imports below, which take seconds

import json
import math
import shlex
import sys
import time
from dataclasses import asdict

import torch

import evaluate
from blockdrop_min import free_blocks, load_foreign
from blockdrop_min.curriculum import curriculum_step, portion, warm_start_step
from blockdrop_min.finetuning import finetune_step, settled_step
from blockdrop_min.lab import process
from blockdrop_min.lab.checkpoint import build, restore, restore_optimizer, save, save_metrics
from blockdrop_min.lab.data import augment, load_data, seeded
from blockdrop_min.lab.evaluation import run_policy
from blockdrop_min.lab.files import locked, write_safely
from blockdrop_min.lab.log import Log
from blockdrop_min.lab.resume import open_folder, versions
from blockdrop_min.lab.settings import STAGES, parse
from blockdrop_min.lab.weights import start_policy
from blockdrop_min.policy_gradient import fading
from blockdrop_min.pretraining import drop_fraction, pretrain_step

WARM_UP = 0.2  # the fraction of a stage in which the learning rate rises


def train_one_epoch(model, optimizer, data, state, settings, stage, log, received):
    """Trains the epoch that `state` stands in, from its step on.

    Everything random in a step comes from generators seeded by (seed, stage, epoch, step), so that
    a run that goes on after any step does exactly what it would have done.

    state: the run's position and the epoch's sums over images; moved on after every step.
    received: the signals to stop; they end a step, not the process.
    Raises Stop after a step, and FloatingPointError before one of the optimizer.
    """
    epoch = state["epoch"]
    device = data.train.labels.device
    num_blocks = model.resnet.num_blocks
    steps = math.ceil(len(data.train) / stage.batch)
    start = time.perf_counter()
    log.epoch(stage, epoch, steps, state["step"])

    # Which networks learn, and which blocks the policy decides on.
    set_learning(model.resnet, stage.name != "curriculum")
    set_learning(model.policy, stage.name != "pretrain")
    free = free_in_epoch(settings, stage, epoch, num_blocks)
    warm_start = stage.name == "curriculum" and epoch < settings.warm_epochs

    # The images in a new order, from where the epoch was left.
    order = torch.randperm(len(data.train), generator=seeded(settings.seed, stage.name, epoch))
    order = order[state["step"] * stage.batch :]
    for x, y in data.train.batches(stage.batch, order, settings.workers, process.my_part):
        batch = min(stage.batch, len(data.train) - state["step"] * stage.batch)
        progress = (epoch + state["step"] / steps) / stage.epochs  # of the stage, in [0, 1)

        # Augment and normalise the images.
        generator = step_generator(settings, state, "images", batch, 3, device)
        x = model.prepare(augment(x, data.crop, data.pad, generator))

        # Compute the loss of the stage.
        numbers = num_blocks + 2 if stage.name == "pretrain" else num_blocks
        generator = step_generator(settings, state, "policies", batch, numbers, device)
        until = settings.settle_by if stage.name == "finetune" else settings.fade_by
        fade = fading(progress, until)
        alpha = settings.alpha + (1 - settings.alpha) * fade
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.amp):
            if stage.name == "pretrain":
                fraction = drop_fraction(progress, settings.drop)
                loss, logged = pretrain_step(model, x, y, fraction, generator)
            elif warm_start:
                loss, logged = warm_start_step(model, x, y)
            elif stage.name == "curriculum":
                beta = settings.curriculum_beta * (1 - fade)
                gamma = settings.curriculum_gamma
                loss, logged = curriculum_step(
                    model, x, y, free, alpha, beta, gamma, generator, settings.classify
                )
            elif settings.policy == "learned" and fade < 1:
                beta = settings.finetune_beta * (1 - fade)
                gamma = settings.finetune_gamma
                full = settings.full_fraction
                loss, logged = finetune_step(model, x, y, alpha, beta, gamma, generator, full)
            else:
                loss, logged = settled_step(model, x, y, settings.finetune_gamma)

        # Take the optimizer's step, unless a number is not finite. One read of the device.
        optimizer.zero_grad()
        loss.backward()
        process.average_gradients(model, len(x) / batch)
        sums = image_sums(loss, logged, optimizer)
        if not math.isfinite(sums.pop("gradient norm")) or not math.isfinite(sums["loss"]):
            raise FloatingPointError("the loss or a gradient is not finite")
        for group in optimizer.param_groups:
            group["lr"] = stage.lr * learning_rate(settings.schedule, stage, progress)
        optimizer.step()

        # Move on.
        for name, value in sums.items():
            state["sums"][name] = state["sums"].get(name, 0.0) + value
        state["step"] += 1
        log.step(state["step"])
        state["seconds"] += time.perf_counter() - start
        start = time.perf_counter()
        process.stop_if_asked(received, device)
    if not all(p.isfinite().all() for p in model.parameters()):
        raise FloatingPointError("a weight is not finite after the last step")


def set_learning(network, learns):
    """Training mode and gradients for a network that learns, eval mode and none for another."""
    network.train(learns).requires_grad_(learns)


def free_in_epoch(settings, stage, epoch, num_blocks):
    """Which blocks the policy decides on: none in pretraining and in the warm start. [K] bool"""
    if stage.name == "finetune":
        return torch.ones(num_blocks, dtype=torch.bool)
    if stage.name == "pretrain" or epoch < settings.warm_epochs:
        return torch.zeros(num_blocks, dtype=torch.bool)
    opening = portion(settings.free_by, stage.epochs - settings.warm_epochs)
    return free_blocks(epoch - settings.warm_epochs, num_blocks, opening or None)


def step_generator(settings, state, purpose, batch, numbers, device):
    """The generator of a step for one purpose, at the first image that is this process's.

    batch: images of the step in all processes.
    numbers: random numbers that an image needs.
    """
    key = (settings.seed, state["stage"], state["epoch"], state["step"], purpose)
    generator = seeded(*key, device=device)
    return process.skip(generator, process.my_part(batch).start, numbers)


def image_sums(loss, logged, optimizer):
    """Sums over the batch's images, in all processes, and the gradient's norm: name -> number."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    count = len(logged["correct"])
    sums = {"loss": loss.detach() * count} | {name: v.sum() for name, v in logged.items()}
    sums |= {"images": torch.ones_like(logged["correct"]).sum(), "gradient norm": norm}
    values = process.total(torch.stack([value.float() for value in sums.values()])).tolist()
    return dict(zip(sums, values, strict=True))


def learning_rate(schedule, stage, progress):
    """The factor on the learning rate at this fraction of a stage.

    "cosine": to 0, after a warm-up. "step": the authors' (finetuning: x 0.1 at 80 %; pretraining,
    of which they say nothing: cosine).
    """
    if schedule == "step" and stage.name != "pretrain":
        return 0.1 if stage.name == "finetune" and progress >= 0.8 else 1.0
    if progress < WARM_UP:
        return progress / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP)))


def make_optimizer(model, stage):
    """SGD for the ResNet in pretraining, Adam without weight decay in the others (authors)."""
    if stage.name == "pretrain":
        how = {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
        return torch.optim.SGD(model.resnet.parameters(), stage.lr, **how)
    return torch.optim.Adam(model.parameters(), stage.lr)


def train(model, data, state, settings, out, log, received):
    """Goes through the stages from where `state` stands, with a checkpoint after each epoch."""
    for stage in settings.plan:
        if STAGES.index(stage.name) < STAGES.index(state["stage"]):
            continue
        if state["stage"] != stage.name:
            state.update(stage=stage.name, epoch=0, step=0, sums={}, seconds=0.0, optimizer=None)
        optimizer = make_optimizer(model, stage)
        if state["optimizer"]:
            restore_optimizer(optimizer, state, out)
        while state["epoch"] < stage.epochs:
            try:
                process.stop_if_asked(received, data.train.labels.device)  # while it validated
                train_one_epoch(model, optimizer, data, state, settings, stage, log, received)
            except process.Stop:
                checkpoint(model, optimizer, state, out)
                raise
            except FloatingPointError as problem:
                place = f"{stage.name}, epoch {state['epoch'] + 1}, step {state['step']}"
                advice = f"try a smaller --{stage.name}-lr, in another --out"
                raise FloatingPointError(f"{problem} in {place}; {advice}") from None
            row = finish_epoch(model, data, state, settings, stage)
            last = state["epoch"] == stage.epochs
            if last or state["epoch"] % settings.epochs_per_checkpoint == 0:
                checkpoint(model, optimizer, state, out)
            log.row(row)
        if stage.name == "pretrain" and process.rank() == 0:
            write_safely(out / "resnet.pt", model.resnet.state_dict())
    process.stop_if_asked(received, data.train.labels.device)


def finish_epoch(model, data, state, settings, stage):
    """Validates, adds the epoch's row to the metrics, moves the position on. Returns the row."""
    start = time.perf_counter()
    sums = state["sums"]
    free = free_in_epoch(settings, stage, state["epoch"], model.resnet.num_blocks)
    result = run_policy(model, data.val, data.crop, free=free, workers=settings.workers)
    row = {
        "stage": stage.name,
        "epoch": state["epoch"],
        "epochs": stage.epochs,
        "seconds": round(state["seconds"] + time.perf_counter() - start, 2),
        "free": int(free.sum()),
        "loss": sums["loss"] / sums["images"],
        "train_accuracy": sums["correct"] / sums["images"],
        "R": sums["R"] / sums["images"] if "R" in sums else None,
        "A": sums["A"] / sums["images"] if "A" in sums else None,
        "accuracy": result.accuracy,
        "blocks_mean": result.blocks_mean,
        "blocks_std": result.blocks_std,
        "distinct_policies": result.distinct_policies,
    }
    state["metrics"].append(row)
    state.update(epoch=state["epoch"] + 1, step=0, sums={}, seconds=0.0)
    return row


def checkpoint(model, optimizer, state, out):
    """Saves the run, in the first process."""
    state.update(resnet=model.resnet.state_dict(), policy=model.policy.state_dict())
    state["optimizer"] = optimizer.state_dict()
    if process.rank() == 0:
        save(out, state)


def make_model(settings, data, state, out):
    """The model as the checkpoint has it, or a new one, started from the files that are named."""
    if state:
        return restore(state, out)
    torch.manual_seed(settings.seed)
    model = build(settings, len(data.classes), data.mean, data.std)
    if settings.policy == "learned" and settings.policy_start:
        start_policy(model.policy, settings.policy_start)
    if settings.resnet:
        load_foreign(model.resnet, settings.resnet)
    return model


def check_data(settings, data, state, out):
    """ValueError unless the run can be trained on this data."""
    if not (state or settings.resnet or settings.plan[0].name == "pretrain"):
        advice = "give it weights with --resnet FILE, or epochs of the stage pretrain"
        raise ValueError(f"nothing pretrains the ResNet; {advice}")
    halved = settings.policy_half_size and settings.policy == "learned"
    least = (5 if settings.family == "cifar" else 33) * (2 if halved else 1)
    if data.crop < least:
        needed = f"they need {least} or more (--image-size)"
        raise ValueError(f"images of {data.crop} pixels end in maps of one pixel; {needed}")
    if state and list(state["classes"]) != list(data.classes):
        theirs = f"{len(state['classes'])} classes {list(state['classes'])[:5]}"
        ours = f"{len(data.classes)} {list(data.classes)[:5]}"
        raise ValueError(f"{out} was trained on {theirs}, but the data has {ours}")
    for stage in settings.plan:
        last = len(data.train) % stage.batch or stage.batch
        if last < process.processes():
            given = f"--{stage.name}-batch is {stage.batch}, its last step has {last} images"
            raise ValueError(f"{given}; {process.processes()} processes cannot share them")


def introduce(log, settings, changed, out, device, data, state):
    """Prints what the run does, on what, and from where it goes on."""
    log.say(f"preset {settings.preset}, changed: {changed or 'nothing'}; seed {settings.seed}")
    threads = f"{process.processes()} process(es), {torch.get_num_threads()} threads"
    log.say(f"folder {out}; {device}, {threads}; {versions()}")
    batches = ", ".join(f"{stage.name} {stage.batch} x {stage.epochs}" for stage in settings.plan)
    log.say(f"{data.summary}; images a step x epochs: {batches}")
    if list(state["mean"]) != list(data.mean) or list(state["std"]) != list(data.std):
        log.say(
            "the images have changed since the run began; it keeps its first mean and deviation"
        )
    if state["metrics"] or state["step"]:
        log.say(f"going on: {state['stage']}, epoch {state['epoch'] + 1}, step {state['step']}")
    log.head()
    for row in state["metrics"]:
        log.row(row)


def run(settings, out, changed, device, command):
    """A whole run in its folder, which this process has for itself. Returns the exit code."""
    state, warning = open_folder(out, settings)
    with process.first_alone():
        data = load_data(
            settings.data,
            settings.data_dir,
            settings.image_size,
            settings.train_images,
            settings.val_images,
        )
    check_data(settings, data, state, out)
    model = make_model(settings, data, state, out)
    data = data.to(device)
    model = model.to(device, memory_format=torch.channels_last)
    if not state:
        state = {"stage": settings.plan[0].name, "epoch": 0, "step": 0, "sums": {}}
        state |= {"seconds": 0.0, "optimizer": None, "metrics": []}
        state |= {"classes": data.classes, "mean": data.mean, "std": data.std}
    state["settings"] = asdict(settings)
    with Log(quiet=process.rank() > 0) as log, process.stop_signals() as received:
        if process.rank() == 0:
            described = asdict(settings) | {"versions": versions()}
            write_safely(out / "settings.json", json.dumps(described, indent=1).encode())
            save_metrics(out, state["metrics"])  # a killed run may be a row ahead of its checkpoint
        if warning:
            log.say(warning)
        introduce(log, settings, changed, out, device, data, state)
        try:
            train(model, data, state, settings, out, log, received)
        except process.Stop as stop:
            log.say(f"stopped and saved; to go on, run again: {command}")
            return stop.code
    if process.rank() > 0:
        return 0
    return evaluate.main([str(out), "--data-dir", settings.data_dir, "--device", settings.device])


def main(arguments=None):
    """`python train.py`, with these arguments or the command line's. Returns the exit code."""
    settings, out, changed = parse(arguments)
    given = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", "train.py", *given])
    if process.under_torchrun():
        count = os.environ["WORLD_SIZE"]
        command = command.replace("python", f"torchrun --nproc_per_node={count}", 1)
    try:
        # Without this variable, the next line makes a GPU refuse matrix products.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(settings.deterministic)
        device = process.choose_device(settings.device)
        out.mkdir(parents=True, exist_ok=True)
        with process.team(device), locked(out):
            return run(settings, out, changed, device, command)
    except (ValueError, FloatingPointError) as problem:
        print(f"train.py: {problem}", file=sys.stderr)
    except OSError as problem:
        advice = f"to go on from the last checkpoint, run again: {command}"
        print(f"train.py: {problem}; {advice}", file=sys.stderr)
    except (MemoryError, RuntimeError) as problem:
        if not process.out_of_memory(problem):
            raise
        print(f"train.py: {process.out_of_memory(problem)}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        message = "train.py: stopped before its next checkpoint; what was saved stays"
        print(message, file=sys.stderr)
        sys.exit(130)

"""Trains BlockDrop: pretrain the ResNet, learn the policy with a curriculum, finetune both. `python train.py --help`"""

import json
import math
import os
import shlex
import signal
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict, replace

import torch
import torchvision
from torch.profiler import ProfilerActivity, profile, record_function

import evaluate
from blockdrop_min import free_blocks, load_foreign
from blockdrop_min.lab.checkpoint import DAMAGED, NAME, PREVIOUS, build, read, restore, save, save_metrics, write_safely
from blockdrop_min.lab.data import augment, load_data, seeded
from blockdrop_min.lab.folding import fast
from blockdrop_min.lab.log import Log
from blockdrop_min.lab.process import Stop, average, first_alone, locked, processes, rank, share, signals, skip, team, total
from blockdrop_min.lab.evaluation import run_policy
from blockdrop_min.lab.settings import STAGES, choose_device, flag, parse
from blockdrop_min.finetuning import policy_step, pretrain_step, set_mode, settled_step, warm_step
from blockdrop_min.lab.weights import fitting, start_policy

MAY_CHANGE = {"stages", "pretrain_epochs", "curriculum_epochs", "finetune_epochs", "epochs_per_checkpoint", "device",
              "workers", "data_dir", "profile"}  # when a run goes on  # fmt: skip


# Setting up


def open_folder(out, settings):
    """The checkpoint that the run's folder holds to go on from, or None. A damaged one is put aside.

    Raises ValueError if the folder holds a run with other settings.
    """
    mine, state = asdict(settings), read(out) if (out / NAME).exists() or (out / PREVIOUS).exists() else None
    if state:
        theirs = state["settings"]
        differ = [f"{flag(name)} {theirs.get(name)} there, {mine[name]} here"
                  for name in mine if theirs.get(name) != mine[name] and name not in MAY_CHANGE]  # fmt: skip
        if differ:
            raise ValueError(f"{out} holds a run with other settings ({'; '.join(differ)}); use them, or another --out")
    if state and "note" in state and rank() == 0 and (out / NAME).exists():
        os.replace(out / NAME, out / DAMAGED)  # or the next save would keep it as the previous one
    return state


def make_model(settings, data, state, out):
    """The model as the checkpoint has it, or a new one, started from the files that the settings name."""
    torch.manual_seed(settings.seed)
    model = restore(state, out) if state else build(settings, len(data.classes), data.mean, data.std)
    if settings.policy == "learned":
        # A classifier on the policy network's features, for the warm start alone.
        model.classifier = torch.nn.Linear(model.policy.features.num_features, len(data.classes))
        if state:
            model.classifier.load_state_dict(fitting(model.classifier, state.get("classifier", {}), f"{out}, classifier"))
        else:
            torch.nn.init.constant_(model.policy.logit.bias, settings.keep_bias)
            if settings.policy_start:
                start_policy(model.policy, settings.policy_start)
    if settings.resnet and not state:
        load_foreign(model.resnet, settings.resnet)
    return model


def make_optimizer(model, stage, settings):
    """SGD for the ResNet in pretraining, Adam without weight decay in the other stages (authors' code)."""
    if stage == "pretrain":
        return torch.optim.SGD(model.resnet.parameters(), settings.pretrain_lr, momentum=0.9, nesterov=True, weight_decay=5e-4)
    return torch.optim.Adam(model.parameters(), getattr(settings, f"{stage}_lr"))  # what is frozen has no gradient


def learning_rate(schedule, stage, progress):
    """The factor on the learning rate at this share of a stage's steps."""
    if schedule == "step" and stage != "pretrain":  # authors' code
        return 0.1 if stage == "finetune" and progress >= 0.8 else 1.0
    warm = 0.2
    return progress / warm if progress < warm else 0.5 * (1 + math.cos(math.pi * (progress - warm) / (1 - warm)))


# Training


def take_step(model, stage, settings, x, y, free, progress, generator, frozen=None):
    """The loss of one step of a stage, and what it saw of each image. progress: the share of the stage that is done."""
    if stage == "pretrain":  # plain at first: dropping sets in after a fifth of the steps, fully after two fifths
        return pretrain_step(model, x, y, settings.drop * min(1.0, max(0.0, progress / 0.2 - 1)), generator)
    if stage == "curriculum" and not free.any():
        return warm_step(model, x, y)
    joint, alpha = stage == "finetune", settings.alpha
    beta, gamma = (settings.finetune_beta, settings.finetune_gamma) if joint else (settings.beta, settings.curriculum_gamma)
    # Exploration may fade in finetuning and the policy then settle: the ResNet learns on under those that it is used with.
    fade = min(1.0, progress / settings.settle_by) if joint and settings.settle_by else 0.0
    if settings.policy != "learned" or fade == 1:
        return settled_step(model, x, y, gamma)
    return policy_step(model, x, y, free, alpha + (1 - alpha) * fade, beta * (1 - fade), gamma, generator, joint,
                       settings.full_share, frozen)  # fmt: skip


def free_in(stage, epoch, settings, num_blocks):
    """Which blocks the policy decides on in this epoch: none before the curriculum and in its warm start, then its own."""
    if stage == "finetune":
        return torch.ones(num_blocks, dtype=torch.bool)
    if stage == "pretrain" or epoch < settings.warm_epochs:
        return torch.zeros(num_blocks, dtype=torch.bool)
    opening = math.ceil(settings.free_by * (settings.curriculum_epochs - settings.warm_epochs))
    return free_blocks(epoch - settings.warm_epochs, num_blocks, opening or None)


def update(model, optimizer, loss, lr, weight):
    """The optimizer's step on the mean loss of a batch, of which this process has the share `weight`.

    Raises FloatingPointError, before the step, if the loss or a gradient is not finite.
    """
    optimizer.zero_grad()
    with record_function("backward"):
        loss.backward()
        average(model, weight)
    for group in optimizer.param_groups:
        group["lr"] = lr
        norm = torch.nn.utils.get_total_norm([p.grad for p in group["params"] if p.grad is not None])
        if not torch.isfinite(loss + norm):
            raise FloatingPointError("the loss or a gradient is not finite")
    with record_function("optimizer"):
        optimizer.step()


def train_one_epoch(model, optimizer, data, state, settings, log, asked):
    """The epoch that `state` stands in, from its step on. Leaves the position and the sums over images in `state`.

    Everything random in a step comes from generators whose seed is (seed, stage, epoch, step), and the learning rate
    from its number, so that a run that goes on after any step does exactly what it would have done.
    Raises Stop when asked to, after a step, and FloatingPointError, before the optimizer, if a number is not finite.
    """
    stage, epoch, device, K = state["stage"], state["epoch"], data.train.labels.device, model.resnet.num_blocks
    batch, epochs = getattr(settings, f"{stage}_batch"), settings.epochs(stage)
    order = torch.randperm(len(data.train), generator=seeded(settings.seed, stage, epoch))[state["step"] * batch :]
    steps, start = math.ceil(len(data.train) / batch), time.perf_counter()
    free = free_in(stage, epoch, settings, K)
    log.epoch(stage, epoch, epochs, steps, state["step"])
    set_mode(model, stage)
    frozen = fast(model.resnet) if stage == "curriculum" else None
    for x, y in data.train.batches(batch, order, settings.workers, share):
        images = min(batch, len(data.train) - state["step"] * batch)  # in all processes; x has this one's

        def draws(purpose, numbers):
            generator = seeded(settings.seed, stage, epoch, state["step"], purpose, device=device)
            return skip(generator, share(images).start, numbers)  # noqa: B023

        progress = (epoch + state["step"] / steps) / epochs
        with record_function("augmentation"):
            x = model.prepare(augment(x, data.crop, data.pad, draws("images", 3)))
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.amp):
            generator = draws("policies", K + 2 if stage == "pretrain" else K)
            loss, seen = take_step(model, stage, settings, x, y, free, progress, generator, frozen)
        update(model, optimizer, loss, getattr(settings, f"{stage}_lr") * learning_rate(settings.schedule, stage, progress),
               weight=len(x) / images)  # fmt: skip
        seen |= {"loss": loss.detach() * len(x), "images": torch.ones_like(y)}
        sums = total(torch.stack([value.float().sum() for value in seen.values()])).tolist()
        for name, value in zip(seen, sums, strict=True):
            state["sums"][name] = state["sums"].get(name, 0.0) + value
        state["step"] += 1
        log.step(state["step"])
        if total(torch.tensor(len(asked), device=device)):  # in any process
            state["seconds"] += time.perf_counter() - start
            raise Stop(asked[0] if asked else signal.SIGTERM)
    if not all(p.isfinite().all() for p in model.parameters()):
        raise FloatingPointError("a weight is not finite after the last step")
    state["seconds"] += time.perf_counter() - start


def finish_epoch(model, data, state, settings):
    """Validates, adds the epoch's row to the metrics, and moves the position on. Returns the row."""
    stage, sums, start = state["stage"], state["sums"], time.perf_counter()
    free = free_in(stage, state["epoch"], settings, model.resnet.num_blocks)
    result = run_policy(model, data.val, data.crop, free=free)
    row = {
        "stage": stage, "epoch": state["epoch"], "epochs": settings.epochs(stage),
        "seconds": round(state["seconds"] + time.perf_counter() - start, 2),
        "free": int(free.sum()), "loss": sums["loss"] / sums["images"], "train_accuracy": sums["correct"] / sums["images"],
        **{name: sums[name] / sums["images"] if name in sums else None for name in ("R", "A")},
        "accuracy": result.accuracy, "blocks_mean": result.blocks_mean, "blocks_std": result.blocks_std,
        "distinct_policies": result.distinct_policies,
    }  # fmt: skip
    state["metrics"].append(row)
    state.update(epoch=state["epoch"] + 1, step=0, sums={}, seconds=0.0)
    return row


def train(model, data, state, settings, out, log):
    """All stages, each from where `state` stands, with checkpoints on the way, at a stage's end and when stopped."""

    def checkpoint(optimizer):
        networks = {name: network.state_dict() for name, network in model.named_children()}
        state.update(networks, optimizer=optimizer.state_dict())
        if rank() == 0:
            save(out, state)

    with signals() as asked:
        for stage in settings.stage_list:
            if STAGES.index(stage) < STAGES.index(state["stage"]):
                continue
            if state["stage"] != stage:
                state.update(stage=stage, epoch=0, step=0, sums={}, seconds=0.0, optimizer=None)
            set_mode(model, stage)
            optimizer, epochs = make_optimizer(model, stage, settings), settings.epochs(stage)
            if state["optimizer"]:
                optimizer.load_state_dict(state["optimizer"])
            while state["epoch"] < epochs:
                try:
                    train_one_epoch(model, optimizer, data, state, settings, log, asked)
                except Stop:
                    checkpoint(optimizer)
                    raise
                except FloatingPointError as problem:
                    place = f"{stage}, epoch {state['epoch'] + 1}, step {state['step']}"
                    raise FloatingPointError(
                        f"{problem} in {place}; try a smaller --{flag(f'{stage}_lr')}, in another --out"
                    ) from None
                log.row(finish_epoch(model, data, state, settings))
                if state["epoch"] % settings.epochs_per_checkpoint == 0 or state["epoch"] == epochs:
                    checkpoint(optimizer)
            if stage == "pretrain" and rank() == 0:
                write_safely(out / "resnet.pt", model.resnet.state_dict())
        if asked:  # while the last epoch was validated
            raise Stop(asked[0])


def profile_stages(model, data, settings, log, steps=10):
    """`--profile`: says how many milliseconds each part of a step takes, a mean over `steps` of a stage's last epoch."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # no word on a GPU that is not there
    activities = None if torch.cuda.is_available() else [ProfilerActivity.CPU]
    settings = replace(settings, settle_by=0.0)  # to see finetuning while both networks learn
    for stage in filter(settings.epochs, settings.stage_list):
        state, optimizer = {"stage": stage, "epoch": settings.epochs(stage) - 1}, make_optimizer(model, stage, settings)
        for count, watch in ((2, nullcontext()), (steps, profile(activities=activities, acc_events=True))):  # first warm up
            images = torch.arange(count * getattr(settings, f"{stage}_batch")) % len(data.train)
            state |= {"step": 0, "sums": {}, "seconds": 0.0}
            with watch as seen:
                train_one_epoch(model, optimizer, replace(data, train=data.train.subset(images)), state, settings, log, [])
        spent = {e.key: (e.device_time_total or e.cpu_time_total) / 1e6 for e in seen.key_averages()
                 if e.is_user_annotation and "#" not in e.key} | {"in all": state["seconds"]}  # fmt: skip
        log.say(f"{stage}, milliseconds a step: " + "; ".join(f"{part} {1e3 * s / steps:.1f}" for part, s in spent.items()))


def run(settings, out, changed, device, command):
    """A whole run in its folder, which this process has for itself. Returns the exit code.

    Raises ValueError or OSError, one line, if it cannot begin.
    """
    state = open_folder(out, settings)
    if not (state or settings.resnet or settings.epochs("pretrain")):
        raise ValueError("nothing pretrains the ResNet; give it weights with --resnet FILE, or epochs of the stage pretrain")
    with first_alone():
        data = load_data(settings.data, settings.data_dir, settings.image_size, settings.train_images, settings.val_images)
    least = ((4 if settings.family == "cifar" else 32) + 1) * (1 + (settings.policy_half and settings.policy == "learned"))
    if data.crop < least:
        raise ValueError(f"images of {data.crop} pixels end in maps of one pixel; they need {least} or more (--image-size)")
    if state and list(state["classes"]) != list(data.classes):
        raise ValueError(f"{out} was trained on the classes {state['classes']}, but the data has {data.classes}")
    for stage in settings.stage_list:
        batch = getattr(settings, f"{stage}_batch")
        if 0 < (last := len(data.train) % batch) < processes() or batch < processes():
            raise ValueError(f"--{flag(f'{stage}_batch')} is {batch}: {processes()} processes cannot share it, or not the last "
                             f"step of {last} from {len(data.train)} images; try another size")  # fmt: skip
    model = make_model(settings, data, state, out)
    data, model = data.to(device), model.to(device, memory_format=torch.channels_last)
    if settings.profile:
        with Log(quiet=rank() > 0) as log:
            profile_stages(model, data, settings, log)
        return 0
    fresh = {"stage": settings.stage_list[0], "epoch": 0, "step": 0, "sums": {}, "seconds": 0.0, "optimizer": None, "metrics": []}
    described = {"settings": asdict(settings), "classes": data.classes, "mean": data.mean, "std": data.std}
    state = fresh | (state or {}) | described
    if rank() == 0:
        write_safely(out / "settings.json", json.dumps(asdict(settings), indent=1).encode())
        save_metrics(out, state["metrics"])  # which a killed run may have left one save behind its checkpoint
    if processes() > 1:
        command = command.replace("python", f"torchrun --nproc_per_node={processes()}", 1)
    with Log(quiet=rank() > 0) as log:
        log.say(f"preset {settings.preset}, changed: {changed or 'nothing'}; seed {settings.seed}; folder {out}")
        log.say(f"{device}, {processes()} process(es), {torch.get_num_threads()} threads; "
                f"torch {torch.__version__}, torchvision {torchvision.__version__}")  # fmt: skip
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
            log.say(f"stopped and saved; to go on, run again: {command}")
            return stop.code
        except (FloatingPointError, OSError) as problem:
            again = f"; to go on from the last checkpoint, run again: {command}" if isinstance(problem, OSError) else ""
            log.say(f"train.py: {problem}{again}")
            return 2
    if rank() > 0:
        return 0
    return evaluate.main([str(out), "--data-dir", settings.data_dir, "--device", settings.device])


def main(arguments=None):
    """`python train.py`, with these arguments or those of the command line. Returns the exit code."""
    settings, out, changed = parse(arguments)
    command = shlex.join(["python", "train.py", *(sys.argv[1:] if arguments is None else arguments)])
    try:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or the next line refuses matrix products on a GPU
        torch.use_deterministic_algorithms(settings.deterministic)
        out.mkdir(parents=True, exist_ok=True)
        with team(choose_device(settings.device)) as device, locked(out):
            return run(settings, out, changed, device, command)
    except (ValueError, OSError, FloatingPointError) as problem:
        print(f"train.py: {problem}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("train.py: stopped before its next checkpoint; what was saved stays", file=sys.stderr)
        sys.exit(130)

"""Trains BlockDrop: pretrain the ResNet, learn the policy with a curriculum, finetune both.

`python train.py` trains the preset `demo`; `python train.py --help` lists the settings. `Run` is a
run in its folder: its `train_one_epoch` is the loop, so read that first.
"""

import json
import math
import os
import sys
import time
from dataclasses import replace

import torch

from blockdrop_min.lab import process, report
from blockdrop_min.lab.checkpoint import build, restore, restore_optimizer, save, save_metrics
from blockdrop_min.lab.data import augment, load_data, seeded
from blockdrop_min.lab.evaluation import run_policy
from blockdrop_min.lab.files import locked, write_safely
from blockdrop_min.lab.log import Log
from blockdrop_min.lab.program import guarded
from blockdrop_min.lab.resume import open_folder, versions
from blockdrop_min.lab.rivals import static_rivals
from blockdrop_min.lab.settings import STAGES, flat, parse
from blockdrop_min.lab.weights import load_foreign, start_policy

SAVE_EVERY = 600  # seconds: a run that ends without warning loses no more
LARGEST_LOSS = 1e12  # a larger one has diverged


class Run:
    """A run in its folder.

    state: what a checkpoint holds. stage, epoch, step: where the run stands; sums, seconds: of the
        epoch so far; metrics: a row an epoch; optimizer: its moments; bfloat16: the arithmetic that
        it began with; classes, mean, std: of its data.
    """

    def __init__(self, settings, out, data, model, state, log):
        self.settings = settings
        self.out = out
        self.data = data
        self.model = model
        self.state = state
        self.log = log
        self.saved = time.monotonic()

    def train(self):
        """Goes through the stages from where the run stands, with a checkpoint after each epoch."""
        state = self.state
        for name, stage in self.settings.plan.items():
            if list(STAGES).index(name) < list(STAGES).index(state["stage"]):
                continue
            if state["stage"] != name:
                state.update(stage=name, epoch=0, step=0, sums={}, seconds=0.0, optimizer=None)
            self.optimizer = stage.optimizer(self.model)
            if state["optimizer"] is not None:
                restore_optimizer(self.optimizer, state, self.out)
            while state["epoch"] < stage.epochs:
                self.train_one_epoch(stage)
                row = self.finish_epoch(stage)
                self.save()
                self.log.row(row)
            if name == "pretrain" and process.rank() == 0:
                write_safely(self.out / "resnet.pt", self.model.resnet.state_dict())

    def train_one_epoch(self, stage):
        """Trains the epoch that the run stands in, from its step on.

        Everything random in a step comes from generators seeded by (seed, stage, epoch, step), so
        that a run that goes on after any step does exactly what it would have done.
        """
        data, model, state = self.data, self.model, self.state
        name, epoch = state["stage"], state["epoch"]
        device = data.train.labels.device
        steps = math.ceil(len(data.train) / stage.batch)
        self.log.epoch(name, epoch, stage.epochs, steps, state["step"])
        stage.begin(model)
        start = time.perf_counter()

        # The images in a new order, from where the epoch was left.
        order = torch.randperm(len(data.train), generator=seeded(self.settings.seed, name, epoch))
        order = order[state["step"] * stage.batch :]
        batches = data.train.batches(stage.batch, order, self.settings.workers, process.my_part)
        for x, y in batches:
            progress = (epoch + state["step"] / steps) / stage.epochs  # of the stage, in [0, 1)
            x = augment(x, data.crop, data.pad, self.generator("images", device))
            x = model.prepare(x)
            generator = self.generator("policies", device)
            with torch.autocast(device.type, torch.bfloat16, enabled=state["bfloat16"]):
                loss, logged = stage.step(model, x, y, epoch, progress, generator)

            # Images of the whole batch, over all processes.
            batch = min(stage.batch, len(data.train) - state["step"] * stage.batch)
            for group in self.optimizer.param_groups:
                group["lr"] = stage.lr * stage.rate(progress)
            self.learn(loss, logged, len(x) / batch)

            state["step"] += 1
            self.log.step()
            state["seconds"] += time.perf_counter() - start
            start = time.perf_counter()
            if time.monotonic() - self.saved > SAVE_EVERY and state["step"] < steps:
                self.save()

    def generator(self, purpose, device):
        """The generator of this step for one purpose; each process of several has its own."""
        place = (self.state["stage"], self.state["epoch"], self.state["step"], purpose)
        other = (process.rank(),) if process.rank() else ()
        return seeded(self.settings.seed, *place, *other, device=device)

    def learn(self, loss, logged, weight):
        """Takes the optimizer's step, unless a number is not finite. One read of the device.

        weight: the fraction of the batch's images that this process has.
        """
        self.optimizer.zero_grad()
        loss.backward()
        process.average_gradients(self.model, weight)
        sums = image_sums(loss, logged, self.optimizer)
        norm = sums.pop("gradient norm")
        if not math.isfinite(norm) or not abs(sums["loss"]) < LARGEST_LOSS * sums["images"]:
            self.give_up("the loss or a gradient")
        self.optimizer.step()
        for name, value in sums.items():
            self.state["sums"][name] = self.state["sums"].get(name, 0.0) + value

    def give_up(self, what):
        """Ends a run that has diverged, by a FloatingPointError."""
        stage, epoch, step = (self.state[name] for name in ("stage", "epoch", "step"))
        place = f"{stage}, epoch {epoch + 1}, step {step}; try a smaller --{stage}-lr"
        problem = f"{what} is not finite, or the loss above {LARGEST_LOSS:.0e}"
        raise FloatingPointError(f"{problem}, in {place}, in another --out")

    def finish_epoch(self, stage):
        """Validates, adds the epoch's row to the metrics, moves on. Returns the row."""
        start = time.perf_counter()
        state, sums = self.state, self.state["sums"]
        free = stage.free(state["epoch"], self.model.resnet.num_blocks)
        workers = self.settings.workers
        result = run_policy(self.model, self.data.val, self.data.crop, free=free, workers=workers)
        mean = {name: value / sums["images"] for name, value in sums.items()}
        row = {
            "stage": state["stage"],
            "epoch": state["epoch"],
            "epochs": stage.epochs,
            "seconds": round(state["seconds"] + time.perf_counter() - start, 2),
            "free": int(free.sum()),
            "loss": mean["loss"],
            "train_accuracy": mean["correct"],
            "R": mean.get("R"),
            "A": mean.get("A"),
        }
        measured = ("accuracy", "blocks_mean", "blocks_std", "distinct_policies")
        row |= {name: getattr(result, name) for name in measured}
        state["metrics"].append(row)
        state.update(epoch=state["epoch"] + 1, step=0, sums={}, seconds=0.0)
        return row

    def save(self):
        """Writes the checkpoint, in the first process, unless a number in it is not finite."""
        if not all(tensor.isfinite().all() for tensor in self.model.state_dict().values()):
            self.give_up("a weight")
        networks = {name: self.model.get_submodule(name) for name in ("resnet", "policy")}
        self.state |= {name: network.state_dict() for name, network in networks.items()}
        self.state["optimizer"] = self.optimizer.state_dict()
        if process.rank() == 0:
            save(self.out, self.state)
        self.saved = time.monotonic()

    def introduce(self, changed):
        """Prints what the run does, on what, and from where it goes on."""
        settings, state, say = self.settings, self.state, self.log.say
        device = self.data.train.labels.device
        machine = f"{device}, {process.processes()} process(es), {torch.get_num_threads()} threads"
        arithmetic = "bfloat16" if state["bfloat16"] else "float32"
        batches = ", ".join(f"{name} {s.batch} x {s.epochs}" for name, s in settings.plan.items())
        say(f"preset {settings.preset}, changed: {changed or 'nothing'}; seed {settings.seed}")
        say(f"folder {self.out}; {machine}, {arithmetic}; {versions()}")
        say(f"{self.data.summary}; images a step x epochs: {batches}")
        if list(state["mean"]) != list(self.data.mean) or list(state["std"]) != list(self.data.std):
            say("the images have changed since the run began; it keeps its first mean and std")
        if state["metrics"] or state["step"]:
            say(f"going on: {state['stage']}, epoch {state['epoch'] + 1}, step {state['step']}")
        self.log.head()
        for row in state["metrics"]:
            self.log.row(row)


def image_sums(loss, logged, optimizer):
    """Sums over the batch's images, in all processes, and the gradient's norm: name -> number."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    count = len(logged["correct"])
    sums = {"loss": loss.detach() * count} | {name: v.sum() for name, v in logged.items()}
    sums |= {"images": torch.ones_like(logged["correct"]).sum(), "gradient norm": norm}
    values = process.total(torch.stack([value.float() for value in sums.values()])).tolist()
    return dict(zip(sums, values, strict=True))


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


def new_state(settings, data, device):
    """The state of a run that has not begun."""
    state = {"stage": next(iter(settings.plan)), "epoch": 0, "step": 0, "sums": {}, "seconds": 0.0}
    state |= {"optimizer": None, "metrics": [], "bfloat16": settings.amp == "on"}
    state["bfloat16"] |= settings.amp == "auto" and process.has_bfloat16(device)
    return state | {"classes": data.classes, "mean": data.mean, "std": data.std}


def check_data(settings, data, state, out):
    """ValueError unless the run can be trained on this data."""
    if not (state or settings.resnet or "pretrain" in settings.plan):
        advice = "give it weights with --resnet FILE, or epochs of the stage pretrain"
        raise ValueError(f"nothing pretrains the ResNet; {advice}")
    if state and list(state["classes"]) != list(data.classes):
        theirs = f"{len(state['classes'])} classes {list(state['classes'])[:5]}"
        ours = f"{len(data.classes)} {list(data.classes)[:5]}"
        raise ValueError(f"{out} was trained on {theirs}, but the data has {ours}")
    for name, stage in settings.plan.items():
        last = len(data.train) % stage.batch or stage.batch
        if last < process.processes():
            given = f"--{name}-batch is {stage.batch}, its last step has {last} images"
            raise ValueError(f"{given}; {process.processes()} processes cannot share them")


def run(settings, out, changed, device):
    """A whole run in its folder, which this process has for itself, and the runs of its rivals.

    changed: what differs from the preset; or a line that introduces the run of a rival; None: the
        run says nothing.
    Returns the rows of its epochs.
    """
    out.mkdir(parents=True, exist_ok=True)
    state, warning = open_folder(out, settings)
    with process.first_alone():
        sizes = settings.image_size, settings.train_images, settings.val_images
        data = load_data(settings.data, settings.data_dir, *sizes)
    check_data(settings, data, state, out)
    model = make_model(settings, data, state, out)
    data = data.to(device)
    model = model.to(device, memory_format=torch.channels_last)
    state = state or new_state(settings, data, device)
    state["settings"] = flat(settings)
    process.check_alike(state["stage"], state["epoch"], state["step"])
    with Log(quiet=process.rank() > 0 or changed is None) as log:
        if process.rank() == 0:
            described = flat(settings) | {"versions": versions()}
            write_safely(out / "settings.json", json.dumps(described, indent=1).encode())
            save_metrics(out, state["metrics"])  # a killed run may be a row ahead of its checkpoint
        if warning:
            log.say(warning)
        run_here = Run(settings, out, data, model, state, log)
        if isinstance(changed, str):
            log.say(f"{changed}: {out}")
        else:
            run_here.introduce(changed)
        run_here.train()
    pretrained = str(out / "resnet.pt" if "pretrain" in settings.plan else settings.resnet)
    rival = replace(settings, stages="finetune", resnet=pretrained, rivals=0)
    comparable = settings.policy == "learned" and "finetune" in settings.plan
    if comparable and settings.rivals and not state.get("rivals"):
        choices = static_rivals(model, data, pretrained, settings.workers)
        state["rivals"] = [best_after_trial(some, rival, out, device) for some in choices]
        run_here.save()
    for policy in state.get("rivals", [])[: settings.rivals]:  # ordinary runs, in folders in this
        said = f"fair rival, policy {policy} for all images, trained as long"
        path = out / f"static-{policy.replace(':', '-')}"
        run(replace(rival, policy=policy), path, said, device)
    return state["metrics"]


def best_after_trial(policies, rival, out, device):
    """The policy with the best accuracy on validation after a twelfth of a rival's training."""
    if len(policies) == 1:
        return policies[0]
    epochs = max(1, rival.finetune.epochs // 12)
    trial = replace(rival, finetune=replace(rival.finetune, epochs=epochs))
    log = Log(quiet=process.rank() > 0)
    accuracy = {}
    for policy in policies:
        rows = run(replace(trial, policy=policy), out / f"trial-{policy}", None, device)
        accuracy[policy] = rows[-1]["accuracy"]
        log.say(f"trial of policy {policy} for all images: {100 * accuracy[policy]:.2f} %")
    return max(accuracy, key=accuracy.get)


def main(arguments=None):
    """`python train.py`, with these arguments or the command line's. Returns the exit code."""
    settings, out, changed = parse(arguments)
    # Without this variable, the next line makes a GPU refuse matrix products.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(settings.deterministic)
    device = process.choose_device(settings.device)
    out.mkdir(parents=True, exist_ok=True)  # for the lock
    try:
        with process.team(device), locked(out):
            run(settings, out, changed, device)
            first = process.rank() == 0
    except KeyboardInterrupt:
        message = "stopped; the same command goes on from the last checkpoint"
        raise KeyboardInterrupt(message) from None
    options = {"data_dir": settings.data_dir, "device": settings.device}
    return report.main([str(out)], **options) if first else 0


if __name__ == "__main__":
    sys.exit(guarded("train.py", main))

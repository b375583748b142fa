"""Checkpoints: what is saved comes back to the bit, what cannot be trusted is refused in a line."""

import errno
import re
import signal
import time

import pytest
import torch
from disks import disk, fail, in_a_process, kill
from helpers import assert_equal, rng
from runs import OLD_NAMES, ROW, contents, old, refused, state_of

from blockdrop_min import load
from blockdrop_min.lab import checkpoint
from blockdrop_min.lab.checkpoint import NAME, PREVIOUS, read, restore, restore_optimizer, save
from blockdrop_min.lab.files import FORMAT, write_safely
from blockdrop_min.lab.settings import flat, unflat


def photos(count=5, side=32):
    return torch.randint(256, (count, 3, side, side), generator=rng(0), dtype=torch.uint8)


OURS = state_of()[0]


def saved(folder, **changes):
    """The folder, with a checkpoint in it whose dict has been changed."""
    save(folder, OURS | changes)
    return folder


def refusal(path, action=load):
    """The one short line in which an action refuses a path."""
    with pytest.raises(ValueError, match=re.escape(str(path))) as raised:
        action(path)
    message = str(raised.value)
    assert message.isprintable()
    assert len(message) < 500
    return message


# --------------------------------------------------------------------------------------- two roads
CHANGES = [{"policy": "first:2"}, {"policy": "101"}, {"policy_width": 5}]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("changes", [{}, *CHANGES, {"policy_half_size": False}])
def test_a_loaded_model_computes_the_same_bits_and_is_ready_for_use(tmp_path, changes):
    state, model = state_of(**changes)
    save(tmp_path, state)
    expected = model.to(memory_format=torch.channels_last)(photos())
    for path in (tmp_path, tmp_path / NAME, str(tmp_path)):
        model = load(path)
        for one, other in zip(model(photos()), expected, strict=True):
            assert torch.equal(one, other)
        assert not any(module.training for module in model.modules())
        assert model.classes == tuple("abcdefghij")
        assert model.resnet.conv1.weight.is_contiguous(memory_format=torch.channels_last)


def test_restoring_does_not_need_what_only_training_needs():
    needed = ("settings", "classes", "mean", "std", "resnet", "policy")
    restored = restore({name: OURS[name] for name in needed}, "here")
    assert torch.equal(restored.resnet.fc.weight, OURS["resnet"]["fc.weight"])


# ------------------------------------------------------------------------------- laws: how it saves
# The checkpoint, then metrics.jsonl.
SAVE = ["write", "fsync", "replace", "replace", "write", "fsync", "replace"]


@pytest.mark.parametrize("at", range(len(SAVE)))
@pytest.mark.parametrize("act", [fail(errno.ENOSPC), kill(signal.SIGKILL)], ids=["full", "killed"])
def test_a_save_that_ends_anywhere_leaves_a_checkpoint(tmp_path, at, act):
    def again():
        with disk(at, act) as done:
            try:
                saved(tmp_path, epoch=3)
            except OSError:
                return len(done) - 1
        return done == SAVE

    saved(tmp_path, epoch=1)
    saved(tmp_path, epoch=2)
    names = set(contents(tmp_path))
    code = in_a_process(again)
    assert code in (at, -signal.SIGKILL)
    assert read(tmp_path)[0]["epoch"] == (3 if at > 3 else 2)
    assert code < 0 or set(contents(tmp_path)) <= names


# --------------------------------------------------------------------------- damage and its remedy
def test_a_damaged_checkpoint_gives_way_to_the_one_before_and_loading_warns(tmp_path):
    saved(tmp_path)
    saved(tmp_path)
    (tmp_path / NAME).write_bytes(b"damaged")
    with pytest.warns(UserWarning, match=f"^{tmp_path / NAME} .*the one before, {PREVIOUS}$"):
        load(tmp_path)


def test_a_missing_checkpoint_is_named(tmp_path):
    assert "does not exist" in refusal(tmp_path)
    assert "does not exist" in refusal(tmp_path / "nowhere")


# ------------------------------------------------------------------------------- made by others
@pytest.mark.parametrize(
    "content",
    [{"a": torch.ones(2)}, torch.ones(2), [1, 2], {"format": "blockdrop_min 1"}, "text",
     {"format": torch.ones(2)}, {"format": [FORMAT]}],
)  # fmt: skip
def test_another_programs_file_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "other.pt")
    assert "not a checkpoint of blockdrop_min" in refusal(tmp_path / "other.pt")


WITH = OURS["settings"]
NAN = torch.full((10,), torch.nan)
WRONG = {
    "a depth of text": {"settings": WITH | {"depth": "20"}},
    "a setting out of its range": {"settings": WITH | {"policy_width": 10**6}},
    "a setting of others": {"settings": WITH | {"flavour": 3}},
    "settings that are a list": {"settings": [1]},
    "classes without names": {"classes": tuple(range(10))},
    "classes without end": {"classes": ("x" * 10**6 + "\n\x1b[2J",) * 100},
    "a mean of one channel": {"mean": (0.5,)},
    "a mean of images from 0 to 255": {"mean": (125.0, 120.0, 110.0)},
    "a deviation that is 0 in float32": {"std": (0.2, 1e-50, 0.2)},
    "a deviation that is not finite": {"std": (0.2, float("nan"), 0.2)},
    "a network for other classes": {"classes": ("a", "b")},
    "a policy network that is a list": {"policy": [1]},
    "a weight that is not finite": {"resnet": OURS["resnet"] | {"fc.bias": NAN}},
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_hand_made_checkpoint_ends_in_one_line(tmp_path, fault):
    assert "no whole checkpoint" in refusal(saved(tmp_path, **WRONG[fault]))


@pytest.mark.parametrize("name", ["settings", "classes", "mean", "std", "resnet", "policy"])
def test_what_is_missing_is_named(tmp_path, name):
    state = {key: value for key, value in OURS.items() if key != name}
    write_safely(tmp_path / NAME, {"format": FORMAT, **state})
    assert name in refusal(tmp_path)


# ---------------------------------------------------------------------------------- older versions
def test_a_checkpoint_of_format_2_is_that_of_today(tmp_path):
    unusual = dict.fromkeys(OLD_NAMES.values(), 0.625) | {"curriculum_warm_epochs": 0}
    state, model = state_of(**unusual, amp="off", rivals=0, finetune_alpha=0.625)
    torch.save(old(state), tmp_path / NAME)
    found, _ = read(tmp_path)
    assert flat(unflat(found["settings"])) == state["settings"]
    assert not found["bfloat16"]
    assert torch.equal(load(tmp_path)(photos())[1], model(photos())[1])


def test_the_authors_schedule_and_mixed_precision_of_format_2_are_those_of_today(tmp_path):
    torch.save(old(OURS, schedule="step", amp=True), tmp_path / NAME)
    state, _ = read(tmp_path)
    schedules = [state["settings"].get(f"{s}_schedule") for s in ("curriculum", "finetune")]
    assert schedules == ["constant", "step"]
    assert unflat(state["settings"]).pretrain.schedule == "cosine"
    assert (state["settings"]["amp"], state["bfloat16"]) == ("on", True)


# ----------------------------------------------------------------------------------- the optimizer
def optimizers():
    """Adam of a small network after two steps, and before the first."""
    network = torch.nn.Linear(3, 2)
    adam, fresh = (torch.optim.Adam(network.parameters(), 0.1) for _ in range(2))
    for _ in range(2):
        network(torch.ones(4, 3)).square().sum().backward()
        adam.step()
    return adam, fresh


def test_an_optimizers_moments_come_back_and_what_it_was_made_with_stays(tmp_path):
    optimizer, fresh = optimizers()
    given = optimizer.state_dict()
    given["param_groups"][0] |= {"maximize": True, "lr": float("nan")}
    restore_optimizer(fresh, read(saved(tmp_path, optimizer=given))[0], tmp_path)
    for moments, expected in zip(fresh.state.values(), given["state"].values(), strict=True):
        assert_equal(moments, expected)
    assert (fresh.param_groups[0]["maximize"], fresh.param_groups[0]["lr"]) == (False, 0.1)


@pytest.mark.parametrize("optimizer", [None, {"state": [1]}])
def test_moments_of_another_kind_end_in_one_line(tmp_path, optimizer):
    given = {"optimizer": optimizer}
    said = refusal(tmp_path, lambda path: restore_optimizer(optimizers()[1], given, path))
    assert "is no whole checkpoint" in said


# --------------------------------------------------------------------------------- models that ship
def test_a_shipped_model_is_small_and_decides_as_the_run_does(tmp_path):
    state, model = state_of(depth=20, policy_width=8)
    optimizer = optimizers()[0].state_dict()
    save(tmp_path, state | {"metrics": [ROW], "optimizer": optimizer})
    checkpoint.ship(tmp_path, tmp_path / "demo.pt")
    shipped = load(tmp_path / "demo.pt")
    assert (tmp_path / "demo.pt").stat().st_size <= 700_000
    assert {p.dtype for p in shipped.parameters()} == {torch.float32}
    x = photos(20)
    torch.testing.assert_close(shipped(x)[0], model(x)[0], rtol=0.05, atol=0.05)
    state, _ = read(tmp_path / "demo.pt")
    assert (state["optimizer"], state["metrics"]) == (None, [ROW])


@pytest.mark.parametrize("now", [0, 5e9])  # 1970, 2128: outside the years of a zip archive
def test_the_demo_is_loaded_whatever_the_clock_says(monkeypatch, now):
    monkeypatch.setattr(time, "time", lambda: now)
    assert load("demo").classes[0] == "disc"


def test_a_shipped_model_is_loaded_by_its_name_where_nothing_else_has_it(tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    (tmp_path / "here" / "folder").mkdir(parents=True)
    for name in ("toy", "folder"):
        checkpoint.ship(saved(tmp_path, epoch=2), tmp_path / "models" / f"{name}.pt")
    monkeypatch.setattr(checkpoint, "MODELS", tmp_path / "models")
    monkeypatch.chdir(tmp_path / "here")
    assert load("toy").classes == tuple("abcdefghij")
    assert read("toy")[0]["epoch"] == 2
    for name in ("./toy", "models/toy", "toys", "toy.pt", "", "../here/toy", "folder"):
        with pytest.raises(ValueError, match="does not exist"):
            load(name)
    saved(tmp_path / "here" / "folder", epoch=5)
    assert read("folder")[0]["epoch"] == 5


def test_a_name_that_no_file_can_have_is_refused_like_another_that_is_not_there():
    with refused("too long"):
        load("x" * 300)

"""Several processes do together what one does, and a run has its folder for itself."""

import os
import signal
import time

import pytest
import torch
import torch.nn.functional as F
from helpers import rng
from hypothesis import given
from hypothesis import strategies as st
from runs import batch, contents, differences, fork, kill, pair, rows, short_run, together, wait

import train
from blockdrop_min import process
from blockdrop_min.lab.checkpoint import read
from blockdrop_min.lab.files import locked
from blockdrop_min.lab.data import augment, load_data
from blockdrop_min.policy_net import sample
from blockdrop_min.lab.process import average, first_alone, share, skip, team, total
from blockdrop_min.finetuning import random_policies, set_mode

CPU = torch.device("cpu")


def shares(count, images):
    """The slices of a batch that each of `count` processes takes."""
    found = []
    for rank in range(count):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(process, "processes", lambda: count)
            patch.setattr(process, "rank", lambda rank=rank: rank)
            found.append(share(images))
    return found


def of_both(folder, act):
    """What act(rank) gives in two processes that have joined: a list of two."""

    def member(rank):
        with team(CPU):
            torch.save(act(rank), folder / f"{rank}.pt")

    assert together(2, member) == [0, 0]
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


# ----------------------------------------------------------------------------------------------------- alone
def test_one_process_has_the_whole_batch_and_sums_to_itself():
    assert (process.processes(), process.rank(), share(7)) == (1, 0, slice(0, 7))
    assert total(torch.tensor([3.0])).tolist() == [3.0]


@given(count=st.integers(1, 9), images=st.integers(1, 70))
def test_shares_take_every_image_once_in_order_and_are_even(count, images):
    taken = [range(images)[part] for part in shares(count, images)]
    assert [image for part in taken for image in part] == list(range(images))
    assert max(map(len, taken)) - min(map(len, taken)) <= 1


@pytest.mark.parametrize(("numbers", "draw"), [
    (7 + 2, lambda n, generator: random_policies(n, 7, 0.5, generator)),
    (7, lambda n, generator: sample(torch.full((n, 7), 0.4), generator)),
], ids=["dropping", "sampling"])  # fmt: skip
@given(count=st.integers(1, 4), images=st.integers(4, 70), seed=st.integers(0, 99))
def test_processes_draw_together_what_one_draws(numbers, draw, count, images, seed):
    parts = [draw(part.stop - part.start, skip(rng(seed), part.start, numbers)) for part in shares(count, images)]
    assert torch.equal(torch.cat(parts), draw(images, rng(seed)))


@given(count=st.integers(1, 4), images=st.integers(4, 30), seed=st.integers(0, 99))
def test_processes_augment_together_as_one_does(count, images, seed):
    x = torch.randint(256, (images, 3, 6, 6), generator=rng(1), dtype=torch.uint8)
    parts = [augment(x[part], 6, 2, skip(rng(seed), part.start, 3)) for part in shares(count, images)]
    assert torch.equal(torch.cat(parts), augment(x, 6, 2, rng(seed)))


# ---------------------------------------------------------------------------------------------- two processes
def gradients(part):
    """Of a small network's loss over these of 7 images, averaged. No image keeps block 1, and only the first block 2."""
    x, y = batch(7)
    u = torch.ones(7, 3)
    u[:, 1], u[1:, 2] = 0, 0
    model = pair()
    F.cross_entropy(model.resnet(x[part], u[part], execute="sparse"), y[part]).backward()
    average(model, len(y[part]) / 7)
    return [p.grad for p in model.parameters()]


def test_averaged_gradients_are_those_of_the_whole_batch(tmp_path):
    whole = gradients(slice(0, 7))
    for expected, one, other in zip(whole, *of_both(tmp_path, lambda rank: gradients(share(7))), strict=True):
        assert (expected is None) == (one is None) == (other is None)
        if one is not None:
            assert torch.equal(one, other)
            torch.testing.assert_close(one, expected, rtol=1e-5, atol=1e-6)
    assert any(gradient is None for gradient in whole)


def test_running_statistics_become_the_mean_and_frozen_ones_stay(tmp_path):
    def statistics(rank):
        model = pair().requires_grad_(True)
        model.policy.train()
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.fill_(rank)
        average(model, 0.5)
        return [{module.running_mean.unique().item() for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)}
                for network in (model.policy, model.resnet)]  # fmt: skip

    assert of_both(tmp_path, statistics) == [[{0.5}, {0.0}], [{0.5}, {1.0}]]


def test_a_sum_is_over_all_processes(tmp_path):
    assert of_both(tmp_path, lambda rank: total(torch.tensor([1.0, rank])).tolist()) == [[2, 1], [2, 1]]


@pytest.fixture
def without_batch_statistics(monkeypatch):
    """Training in which BatchNorm uses its running statistics: then nothing depends on how a batch is shared."""

    def set_mode_(model, stage):
        set_mode(model, stage)
        model.eval()

    monkeypatch.setattr(train, "set_mode", set_mode_)


def test_two_processes_have_the_losses_of_one_on_the_same_batches(tmp_path, without_batch_statistics):
    flags = ["--full-share=0", "--keep-bias=0", "--pretrain-lr=0.001"]
    assert short_run(tmp_path / "one", *flags) == 0
    assert together(2, lambda rank: short_run(tmp_path / "two", *flags)) == [0, 0]
    for one, two in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        for name in ("loss", "train_accuracy", "R", "A"):
            assert two[name] == (one[name] and pytest.approx(one[name], rel=1e-5, abs=1e-5)), (one["stage"], name)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder of a run of two processes, the labels that each has seen in each step, and the bits of their models."""
    out = tmp_path_factory.mktemp("two")

    def member(rank):
        seen, step, build = [], train.take_step, train.make_model
        models = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(train, "take_step", lambda *arguments: seen.append(arguments[4].tolist()) or step(*arguments))
            patch.setattr(train, "make_model", lambda *arguments: models.append(build(*arguments)) or models[0])
            code = short_run(out / "run")
        torch.save((seen, models[0].state_dict()), out / f"{rank}.pt")
        return code

    assert together(2, member) == [0, 0]
    return out / "run", *(torch.load(out / f"{rank}.pt") for rank in (0, 1))


def test_two_processes_take_every_image_once_an_epoch(two):
    _, (first, _), (second, _) = two
    expected = sorted(load_data("shapes", None, 16, 96, 24).train.labels.tolist())
    steps = [one + other for one, other in zip(first, second, strict=True)]
    assert [sorted([*steps[i], *steps[i + 1], *steps[i + 2]]) for i in range(0, len(steps), 3)] == [expected] * 6
    assert all(abs(len(one) - len(other)) <= 1 for one, other in zip(first, second, strict=True))


def test_two_processes_end_with_the_same_bits(two):
    folder, (_, first), (_, second) = two
    saved = read(folder)
    for name, tensor in first.items():
        part, _, key = name.partition(".")
        assert torch.equal(tensor, saved[part][key])
        assert name.endswith("num_batches_tracked") or torch.equal(tensor, second[name]), name


def at_step(count, act, folder):
    """What a process does that runs train.py and acts before its step `count`, if it is the second one."""

    def member(rank):
        left, take = [count], train.take_step

        def take_step(*arguments):
            left[0] -= 1
            if rank == 1 and left[0] == 0:
                act()
            return take(*arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(train, "take_step", take_step)
            return short_run(folder)

    return member


def test_a_signal_to_one_of_two_processes_stops_both_and_they_go_on(two, tmp_path):
    assert together(2, at_step(5, kill(signal.SIGTERM), tmp_path)) == [143, 143]
    assert read(tmp_path)["step"] == 2
    assert together(2, lambda rank: short_run(tmp_path)) == [0, 0]
    assert differences(tmp_path, two[0]) == [] and rows(tmp_path) == rows(two[0])


def test_a_killed_process_ends_the_other_and_they_go_on_with_the_same_bits(two, tmp_path):
    first, second = together(2, at_step(8, kill(signal.SIGKILL), tmp_path))
    assert first != 0 and second == -signal.SIGKILL and len(read(tmp_path)["metrics"]) == 2
    assert together(2, lambda rank: short_run(tmp_path)) == [0, 0]
    assert differences(tmp_path, two[0]) == [] and rows(tmp_path) == rows(two[0])


def test_the_first_process_is_alone_in_what_it_runs_first_even_if_it_fails(tmp_path):
    def act(rank):
        there = (tmp_path / "there").exists()
        try:
            with first_alone():
                there = (tmp_path / "there").exists()
                time.sleep(0.5)
                (tmp_path / "there").touch()
                raise OSError
        except OSError:
            return there

    assert of_both(tmp_path, act) == [False, True]


def test_only_the_first_process_writes(tmp_path):
    def member(rank):
        with pytest.MonkeyPatch.context() as patch:
            if rank:
                for name in ("save", "save_metrics", "write_safely"):
                    patch.setattr(train, name, lambda *arguments: os._exit(9))
            return short_run(tmp_path, "--stages=pretrain", "--pretrain-epochs=1")

    assert together(2, member) == [0, 0]


def test_a_last_step_with_too_few_images_for_all_processes_is_refused(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(train, "processes", lambda: 9)
    assert short_run(tmp_path) == 2
    assert (
        "--pretrain-batch is 32: 9 processes cannot share it, or not the last step of 8 from 72 images" in capfd.readouterr().err
    )


# ---------------------------------------------------------------------------------------------------- the lock
def hold(folder):
    """A process that has locked the folder, and says so by a file, until it is killed."""

    def act():
        with locked(folder):
            (folder / "held").touch()
            time.sleep(60)

    number = fork(act)
    while not (folder / "held").exists():
        time.sleep(0.01)
    return number


def test_a_second_run_in_a_folder_is_refused_and_changes_nothing(tmp_path, capsys):
    holder = hold(tmp_path)
    try:
        before = contents(tmp_path)
        assert short_run(tmp_path) == 2
        assert capsys.readouterr().err.startswith(f"train.py: another run is writing to {tmp_path}; ")
        assert contents(tmp_path) == before
    finally:
        kill(signal.SIGKILL, holder)()
        wait(holder)


def test_the_lock_of_a_dead_process_is_not_in_the_way(tmp_path):
    holder = hold(tmp_path)
    kill(signal.SIGKILL, holder)()
    wait(holder)
    assert short_run(tmp_path, "--stages=pretrain", "--pretrain-epochs=1") == 0

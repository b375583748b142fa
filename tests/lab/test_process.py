"""Several processes do together what one does; and the device and arithmetic of a run."""

import os
import signal
import time
from datetime import timedelta
from unittest.mock import Mock, patch

import pytest
import torch
import torch.nn.functional as F
from disks import at_step, in_a_process, interrupt, kill, together, watch_steps
from helpers import batch, pair
from hypothesis import given
from hypothesis import strategies as st
from runs import EPOCHS, SHORT, differences, rows, short_run
from torch.distributed import TCPStore

import train
from blockdrop_min.lab import process
from blockdrop_min.lab.checkpoint import read
from blockdrop_min.lab.data import load_data
from blockdrop_min.lab.process import average_gradients, first_alone, my_part, team, total
from blockdrop_min.lab.settings import parse

CPU = torch.device("cpu")


def of_both(folder, act, **environment):
    """What act(rank) gives in two processes that have joined: a list of two."""

    def member(rank):
        with team(CPU):
            torch.save(act(rank), folder / f"{rank}.pt")

    assert together(2, member, **environment) == [0, 0]
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


# ----------------------------------------------------------------------------------------- devices
@pytest.fixture
def two_gpus(monkeypatch):
    """A machine with two GPUs, to look at. Gives what makes its tensors."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "zeros", zeros := Mock())
    return zeros


def start_by_torchrun(monkeypatch, local_rank):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    monkeypatch.setenv("LOCAL_RANK", str(local_rank))


@pytest.mark.parametrize("name", ["auto", "cuda", "cpu"])
@pytest.mark.parametrize("local_rank", [None, 0, 1])
def test_each_process_makes_its_first_tensor_on_its_own_device(
    monkeypatch, two_gpus, name, local_rank
):
    if local_rank is not None:
        start_by_torchrun(monkeypatch, local_rank)
    process.choose_device(name)
    gpu = "cuda" if local_rank is None else f"cuda:{local_rank}"
    made = [call.kwargs["device"] for call in two_gpus.call_args_list]
    assert made == ["cpu" if name == "cpu" else gpu]


def test_a_gpu_that_is_not_there_is_refused_with_torchs_reason(monkeypatch, two_gpus):
    two_gpus.side_effect = RuntimeError("CUDA error: invalid device ordinal\nmore lines")
    start_by_torchrun(monkeypatch, 2)
    said = r"'cuda:2', which cannot be used \(CUDA error.*ordinal; there are 2 GPUs\)"
    with pytest.raises(ValueError, match=said):
        process.choose_device("auto")


@pytest.mark.parametrize("name", ["hpu", "nosuch", "", "cpu:x", "cuda:99", "cuda:-1"])
def test_devices_that_cannot_train_are_refused_in_one_line(name, recwarn):
    with pytest.raises(ValueError, match=f"--device is '{name}'") as refused:
        process.choose_device(name)
    assert "\n" not in str(refused.value)
    assert len(recwarn) == 0  # a warning would be a second line


@pytest.mark.parametrize("able", [{"avx512_bf16": True}, {"amx_bf16": True}, {"bf16": True}, {}])
def test_bfloat16_is_for_machines_with_instructions_for_it(monkeypatch, able):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True} | able)
    assert process.has_bfloat16(CPU) == bool(able)


def test_matrix_products_of_cuda_may_be_deterministic(monkeypatch, tmp_path):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    seen = []
    monkeypatch.setattr(train, "run", lambda *_: seen.append(dict(os.environ)))
    short_run(tmp_path)
    assert seen[0]["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


# ----------------------------------------------------------------------------------- what is shared
def test_one_process_has_the_whole_batch_and_its_own_sum():
    assert (process.processes(), process.rank(), my_part(7)) == (1, 0, slice(0, 7))
    assert total(torch.tensor([3.0])).tolist() == [3.0]


@given(count=st.integers(1, 9), images=st.integers(1, 70))
def test_parts_take_every_image_once_in_order_and_are_even(count, images):
    taken = []
    for rank in range(count):
        with patch.multiple(process, processes=lambda: count, rank=lambda rank=rank: rank):
            taken.append(range(images)[my_part(images)])
    assert [image for part in taken for image in part] == list(range(images))
    assert max(map(len, taken)) - min(map(len, taken)) <= 1


def gradients(part):
    """Of a small network's loss over these of 7 images, averaged.

    No image keeps block 1, and only the first one block 2.
    """
    x, y = batch(7)
    u = torch.ones(7, 3)
    u[:, 1] = 0
    u[1:, 2] = 0
    model = pair()
    F.cross_entropy(model.resnet(x[part], u[part], execute="sparse"), y[part]).backward()
    average_gradients(model, len(y[part]) / 7)
    return {name: p.grad for name, p in model.named_parameters()}


def test_averaged_gradients_are_those_of_the_whole_batch_whatever_the_parts(tmp_path):
    whole = gradients(slice(0, 7))
    first, second = of_both(tmp_path, lambda rank: gradients(my_part(7)))  # 3 and 4 images
    for name, expected in whole.items():
        if expected is None:
            assert first[name] is None, name
            assert second[name] is None, name
        else:
            assert torch.equal(first[name], second[name]), name
            torch.testing.assert_close(first[name], expected, rtol=1e-5, atol=1e-6)
    assert any(gradient is None for gradient in whole.values())


def test_running_statistics_become_the_mean_and_frozen_ones_stay(tmp_path):
    def statistics(rank):
        model = torch.nn.ModuleList(torch.nn.BatchNorm2d(1) for _ in range(2))
        model[0].eval()
        for norm in model:
            norm.running_mean.fill_(rank)
            norm.running_var.fill_(rank + 1)
        average_gradients(model, 0.5)
        return [(norm.running_mean.item(), norm.running_var.item()) for norm in model]

    first, second = of_both(tmp_path, statistics)
    assert first == [(0, 1), (0.5, 1.5)]
    assert second == [(1, 2), (0.5, 1.5)]


def test_processes_at_different_places_are_refused_in_all_of_them(tmp_path):
    def act(rank):
        process.check_alike("pretrain", 1, 2)
        with pytest.raises(ValueError) as refused:
            process.check_alike("pretrain", 1, rank)
        return str(refused.value)

    first, second = of_both(tmp_path, act)
    assert first == second
    assert "different places (pretrain, 1, 0; pretrain, 1, 1)" in first


def test_the_first_process_is_alone_in_what_it_runs_first(tmp_path):
    def act(rank):
        with first_alone():
            there = (tmp_path / "there").exists()
            time.sleep(0.5)
            (tmp_path / "there").touch()
        return there

    assert of_both(tmp_path, act) == [False, True]


def test_a_restart_meets_no_address_of_a_dead_process(tmp_path):
    # As under torchrun, whose store stays.
    store = TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=30), False)
    shared = dict(MASTER_PORT=str(store.port), TORCHELASTIC_USE_AGENT_STORE="True")
    for start in range(2):
        shared["TORCHELASTIC_RESTART_COUNT"] = str(start)
        assert of_both(tmp_path, lambda rank: total(torch.ones(1)), **shared) == [2, 2]


# ------------------------------------------------------------------------------------- whole runs
@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A run of two processes.

    Returns its folder, and of each process the labels and random numbers of every step, and the
    model's bits.
    """
    out = tmp_path_factory.mktemp("two")

    def member(rank):
        seen, models = [], []
        build, augment = train.make_model, train.augment

        def augmented(x, crop, pad, generator):
            seen.append([generator.initial_seed()])
            return augment(x, crop, pad, generator)

        def see(name, model, x, y, *given):
            seeds = [a.initial_seed() for a in given if isinstance(a, torch.Generator)]
            seen[-1] = (y.tolist(), seen[-1] + seeds)

        here = pytest.MonkeyPatch()  # in this process, which ends
        watch_steps(here, see)
        here.setattr(train, "augment", augmented)
        here.setattr(train, "make_model", lambda *a: models.append(build(*a)) or models[0])
        code = short_run(out / "run")
        torch.save((seen, models[0].state_dict()), out / f"{rank}.pt")
        return code

    assert together(2, member) == [0, 0]
    return out / "run", *(torch.load(out / f"{rank}.pt") for rank in (0, 1))


def test_two_processes_share_each_steps_images_evenly_and_draw_different_numbers(two):
    _, (first, _), (second, _) = two
    expected = sorted(load_data("shapes", None, 16, 96, 24).train.labels.tolist())
    sizes = [(len(y), len(other)) for (y, _), (other, _) in zip(first, second, strict=True)]
    assert sizes == [(16, 16), (16, 16), (4, 4)] * len(EPOCHS)
    for i in range(0, len(first), 3):
        epoch = [label for y, _ in first[i : i + 3] + second[i : i + 3] for label in y]
        assert sorted(epoch) == expected
    seeds = [seed for _, given in first + second for seed in given]
    assert len(set(seeds)) == len(seeds) > 2 * len(first)


def test_two_processes_end_with_the_same_bits(two):
    folder, (_, first), (_, second) = two
    saved, _ = read(folder)
    for name, tensor in first.items():
        part, _, key = name.partition(".")
        assert key not in saved.get(part, ()) or torch.equal(tensor, saved[part][key]), name
        assert name.endswith("num_batches_tracked") or torch.equal(tensor, second[name]), name


@pytest.mark.parametrize("end", [interrupt, kill(signal.SIGKILL)], ids=["Ctrl-C", "kill -9"])
def test_two_processes_of_which_one_ends_go_on_with_the_same_bits(two, tmp_path, end, monkeypatch):
    def member(rank):
        if end is interrupt:
            monkeypatch.setattr(train, "SAVE_EVERY", -1)
        if rank == 1:
            at_step(monkeypatch, 8, end)
        return short_run(tmp_path)

    first, second = together(2, member)
    assert first != 0
    assert second == (130 if end is interrupt else -signal.SIGKILL)
    assert together(2, lambda rank: short_run(tmp_path)) == [0, 0]
    assert differences(tmp_path, two[0]) == []


def test_two_processes_have_the_losses_of_one_on_the_same_images(tmp_path, monkeypatch):
    def member(rank):
        # Random numbers differ, and so does what BatchNorm sees: do without both.
        monkeypatch.setattr(train, "augment", lambda x, *_: x)
        monkeypatch.setattr(train.STAGES["pretrain"], "begin", lambda self, model: model.eval())
        flags = ["--stages=pretrain", "--pretrain-drop=0", "--pretrain-lr=0.001"]
        flags += ["--pretrain-batch=25"]  # 12 and 13 images, and a last step of 22
        return short_run(tmp_path / os.environ.get("WORLD_SIZE", "1"), *flags)

    assert in_a_process(lambda: member(0)) == 0
    assert together(2, member) == [0, 0]
    for one, two in zip(rows(tmp_path / "1"), rows(tmp_path / "2"), strict=True):
        for name in ("loss", "train_accuracy"):
            assert two[name] == pytest.approx(one[name], rel=1e-5), name


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    def member(rank):
        if rank:
            for name in ("save", "save_metrics", "write_safely"):
                monkeypatch.setattr(train, name, lambda *arguments: os._exit(9))
        return short_run(tmp_path, "--stages=pretrain", "--pretrain-epochs=1")

    assert together(2, member) == [0, 0]


def test_a_process_without_the_others_files_is_refused_before_a_step(two, tmp_path, monkeypatch):
    def member(rank):
        watch_steps(monkeypatch, lambda *_: os._exit(9))
        return short_run(two[0] if rank == 0 else tmp_path, "--finetune-epochs=2")

    assert together(2, member) == [2, 2]


def test_a_last_step_with_too_few_images_for_all_processes_is_refused(monkeypatch):
    settings, out, _ = parse(SHORT)
    data = load_data("shapes", None, 16, 96, 24)
    monkeypatch.setattr(process, "processes", lambda: 9)
    said = "--pretrain-batch is 32, its last step has 8 images; 9 processes cannot share them"
    with pytest.raises(ValueError, match=said):
        train.check_data(settings, data, None, out)

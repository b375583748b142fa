"""Several processes do together what one does; devices and signals; a run has its folder alone."""

import os
import signal
import time

import pytest
import torch
import torch.nn.functional as F
from helpers import batch, pair, rng
from hypothesis import given
from hypothesis import strategies as st
from runs import (
    EPOCHS,
    SHORT,
    contents,
    differences,
    fork,
    kill,
    rows,
    short_run,
    together,
    wait,
    watch_steps,
)

import train
from blockdrop_min.lab import process
from blockdrop_min.lab.checkpoint import read
from blockdrop_min.lab.data import augment, load_data
from blockdrop_min.lab.files import locked
from blockdrop_min.lab.process import average_gradients, first_alone, my_part, skip, team, total
from blockdrop_min.lab.settings import parse
from blockdrop_min.policy_network import sample
from blockdrop_min.pretraining import random_policies

CPU = torch.device("cpu")


def parts(count, images):
    """The slices of a batch that each of `count` processes takes."""
    found = []
    for rank in range(count):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(process, "processes", lambda: count)
            patch.setattr(process, "rank", lambda rank=rank: rank)
            found.append(my_part(images))
    return found


def of_both(folder, act):
    """What act(rank) gives in two processes that have joined: a list of two."""

    def member(rank):
        with team(CPU):
            torch.save(act(rank), folder / f"{rank}.pt")

    assert together(2, member) == [0, 0]
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


# ------------------------------------------------------------------------------------------- alone
def test_one_process_has_the_whole_batch():
    assert process.processes() == 1
    assert process.rank() == 0
    assert my_part(7) == slice(0, 7)


def test_the_sum_over_one_process_is_its_own():
    assert total(torch.tensor([3.0])).tolist() == [3.0]


@given(count=st.integers(1, 9), images=st.integers(1, 70))
def test_parts_take_every_image_once_in_order_and_are_even(count, images):
    taken = [range(images)[part] for part in parts(count, images)]
    assert [image for part in taken for image in part] == list(range(images))
    assert max(map(len, taken)) - min(map(len, taken)) <= 1


DRAWS = {
    "dropping": (7 + 2, lambda n, generator: random_policies(n, 7, 0.5, generator)),
    "sampling": (7, lambda n, generator: sample(torch.full((n, 7), 0.4), generator)),
}


@pytest.mark.parametrize("kind", DRAWS)
@given(count=st.integers(1, 4), images=st.integers(4, 70), seed=st.integers(0, 99))
def test_processes_draw_together_what_one_draws(kind, count, images, seed):
    numbers, draw = DRAWS[kind]
    drawn = []
    for part in parts(count, images):
        drawn.append(draw(part.stop - part.start, skip(rng(seed), part.start, numbers)))
    assert torch.equal(torch.cat(drawn), draw(images, rng(seed)))


@given(count=st.integers(1, 4), images=st.integers(4, 30), seed=st.integers(0, 99))
def test_processes_augment_together_as_one_does(count, images, seed):
    x = torch.randint(256, (images, 3, 6, 6), generator=rng(1), dtype=torch.uint8)
    augmented = []
    for part in parts(count, images):
        augmented.append(augment(x[part], 6, 2, skip(rng(seed), part.start, 3)))
    assert torch.equal(torch.cat(augmented), augment(x, 6, 2, rng(seed)))


# ----------------------------------------------------------------------------------------- signals
def test_a_signal_is_noted_and_a_second_one_stops_at_once():
    with process.stop_signals() as received:
        os.kill(os.getpid(), signal.SIGTERM)
        assert received == [signal.SIGTERM]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_handlers_of_signals_are_put_back(number):
    before = signal.getsignal(number)
    with process.stop_signals():
        assert signal.getsignal(number) is not before
    assert signal.getsignal(number) is before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_exit_code_says_which_signal_it_was(number, code):
    with pytest.raises(process.Stop) as stopped:
        process.stop_if_asked([number], CPU)
    assert stopped.value.code == code


@pytest.mark.parametrize("received", [[], [signal.SIGTERM]])
def test_one_process_makes_no_tensor_to_ask_for_signals(monkeypatch, received):
    made = []
    monkeypatch.setattr(torch, "tensor", lambda *_, **__: made.append(1))
    try:
        process.stop_if_asked(received, CPU)
    except process.Stop:
        assert received
    assert made == []


# ----------------------------------------------------------------------------------------- devices
@pytest.fixture
def two_gpus(monkeypatch):
    """A machine with two GPUs, to look at. Gives the devices on which tensors are made."""
    made = []
    zeros = torch.zeros

    def recorded(*size, device=None):
        made.append(str(device))
        return torch.empty(*size, device="meta") if "cuda" in str(device) else zeros(*size)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "zeros", recorded)
    return made


def start_by_torchrun(monkeypatch, local_rank):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    monkeypatch.setenv("LOCAL_RANK", str(local_rank))


@pytest.mark.parametrize("name", ["auto", "cuda"])
@pytest.mark.parametrize("local_rank", [0, 1])
def test_a_process_of_torchrun_makes_its_first_tensor_on_its_own_gpu(
    monkeypatch, two_gpus, name, local_rank
):
    start_by_torchrun(monkeypatch, local_rank)
    process.choose_device(name)
    assert two_gpus == [f"cuda:{local_rank}"]


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_more_processes_than_gpus_are_refused_before_a_tensor_is_made(monkeypatch, two_gpus, name):
    start_by_torchrun(monkeypatch, 2)
    with pytest.raises(ValueError, match=r"2 GPU\(s\); start as many processes"):
        process.choose_device(name)
    assert two_gpus == []


def test_a_gpu_that_is_not_there_is_refused_before_a_tensor_is_made(two_gpus):
    with pytest.raises(ValueError, match=r"--device is 'cuda:7'.*2 GPU\(s\); use another"):
        process.choose_device("cuda:7")
    assert two_gpus == []


@pytest.mark.parametrize("name", ["auto", "cpu", "cuda"])
def test_devices_that_are_there(two_gpus, name):
    process.choose_device(name)
    assert two_gpus == ["cpu" if name == "cpu" else "cuda"]


@pytest.mark.parametrize(
    "name", ["meta", "hpu", "mkldnn", "vulkan", "nosuch", "", "cpu:x", "cuda:99", "cuda:-1"]
)
def test_devices_that_cannot_train_are_refused_in_one_line(name, recwarn):
    with pytest.raises(ValueError, match=f"--device is '{name}'") as refused:
        process.choose_device(name)
    assert "\n" not in str(refused.value)
    assert len(recwarn) == 0  # a warning would be a second line


@pytest.mark.parametrize(
    "problem",
    [
        MemoryError(),
        MemoryError("Unable to allocate 8 GiB for an array"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
    ],
    ids=["Python", "NumPy", "GPU", "CPU"],
)
def test_memory_that_does_not_suffice_gets_one_line_of_advice(problem):
    assert "--finetune-batch" in process.out_of_memory(problem)
    assert "\n" not in process.out_of_memory(problem)


def test_the_message_of_torchs_own_allocator_is_known():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert process.out_of_memory(caught.value)


@pytest.mark.parametrize("problem", [RuntimeError("shapes differ"), ValueError("no")])
def test_other_errors_are_not_taken_for_those_of_memory(problem):
    assert process.out_of_memory(problem) is None


# ----------------------------------------------------------------------------------- two processes
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


def test_averaged_gradients_are_those_of_the_whole_batch(tmp_path):
    whole = gradients(slice(0, 7))
    first, second = of_both(tmp_path, lambda rank: gradients(my_part(7)))
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
        model = pair().requires_grad_(True)
        model.policy.train()
        found = []
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.fill_(rank)
        average_gradients(model, 0.5)
        for network in (model.policy, model.resnet):
            norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
            found.append({m.running_mean.unique().item() for m in norms})
        return found

    assert of_both(tmp_path, statistics) == [[{0.5}, {0.0}], [{0.5}, {1.0}]]


def test_a_sum_is_over_all_processes(tmp_path):
    both = of_both(tmp_path, lambda rank: total(torch.tensor([1.0, rank])).tolist())
    assert both == [[2, 1], [2, 1]]


@pytest.fixture
def without_batch_statistics(monkeypatch):
    """Training in which BatchNorm uses its running statistics: how a batch is shared is nothing."""

    def set_learning(network, learns):
        network.eval().requires_grad_(learns)

    monkeypatch.setattr(train, "set_learning", set_learning)


def test_two_processes_have_the_losses_of_one_on_the_same_batches(
    tmp_path, without_batch_statistics
):
    flags = ["--full-fraction=0", "--pretrain-lr=0.001"]
    assert short_run(tmp_path / "one", *flags) == 0
    assert together(2, lambda rank: short_run(tmp_path / "two", *flags)) == [0, 0]
    for one, two in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        for name in ("loss", "train_accuracy", "R", "A"):
            expected = one[name] and pytest.approx(one[name], rel=1e-5, abs=1e-5)
            assert two[name] == expected, (one["stage"], name)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A run of two processes.

    Returns its folder, and of each process the labels of every step, and the model's bits.
    """
    out = tmp_path_factory.mktemp("two")

    def member(rank):
        seen = []
        models = []
        build = train.make_model
        with pytest.MonkeyPatch.context() as patch:
            watch_steps(patch, lambda name, model, x, y, *rest: seen.append(y.tolist()))
            patch.setattr(
                train, "make_model", lambda *given: models.append(build(*given)) or models[0]
            )
            code = short_run(out / "run")
        torch.save((seen, models[0].state_dict()), out / f"{rank}.pt")
        return code

    assert together(2, member) == [0, 0]
    return out / "run", *(torch.load(out / f"{rank}.pt") for rank in (0, 1))


def test_two_processes_take_every_image_once_an_epoch(two):
    _, (first, _), (second, _) = two
    expected = sorted(load_data("shapes", None, 16, 96, 24).train.labels.tolist())
    steps = [one + other for one, other in zip(first, second, strict=True)]
    epochs = [sorted([*steps[i], *steps[i + 1], *steps[i + 2]]) for i in range(0, len(steps), 3)]
    assert epochs == [expected] * len(EPOCHS)


def test_two_processes_share_each_step_evenly(two):
    _, (first, _), (second, _) = two
    for one, other in zip(first, second, strict=True):
        assert abs(len(one) - len(other)) <= 1


def test_two_processes_end_with_the_same_bits(two):
    folder, (_, first), (_, second) = two
    saved, _ = read(folder)
    for name, tensor in first.items():
        part, _, key = name.partition(".")
        assert torch.equal(tensor, saved[part][key]), name
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(tensor, second[name]), name


def before_step(count, act, folder):
    """What a process does that runs train.py and acts before its step `count`, if second."""

    def member(rank):
        left = [count]

        def see(*arguments):
            left[0] -= 1
            if rank == 1 and left[0] == 0:
                act()

        with pytest.MonkeyPatch.context() as patch:
            watch_steps(patch, see)
            return short_run(folder)

    return member


def test_a_signal_to_one_of_two_processes_stops_both_and_they_go_on(two, tmp_path):
    assert together(2, before_step(5, kill(signal.SIGTERM), tmp_path)) == [143, 143]
    assert read(tmp_path)[0]["step"] == 2
    assert together(2, lambda rank: short_run(tmp_path)) == [0, 0]
    assert differences(tmp_path, two[0]) == []
    assert rows(tmp_path) == rows(two[0])


def test_a_killed_process_ends_the_other_and_they_go_on_with_the_same_bits(two, tmp_path):
    first, second = together(2, before_step(8, kill(signal.SIGKILL), tmp_path))
    assert first != 0
    assert second == -signal.SIGKILL
    assert len(read(tmp_path)[0]["metrics"]) == 2
    assert together(2, lambda rank: short_run(tmp_path)) == [0, 0]
    assert differences(tmp_path, two[0]) == []
    assert rows(tmp_path) == rows(two[0])


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


def test_a_last_step_with_too_few_images_for_all_processes_is_refused(monkeypatch):
    settings, out, _ = parse(SHORT)
    data = load_data("shapes", None, 16, 96, 24)
    monkeypatch.setattr(process, "processes", lambda: 9)
    said = "--pretrain-batch is 32, its last step has 8 images; 9 processes cannot share them"
    with pytest.raises(ValueError, match=said):
        train.check_data(settings, data, None, out)


# ---------------------------------------------------------------------------------------- the lock
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
        error = capsys.readouterr().err
        assert error.startswith(f"train.py: another run is writing to {tmp_path}; ")
        assert contents(tmp_path) == before
    finally:
        kill(signal.SIGKILL, holder)()
        wait(holder)


def test_the_lock_of_a_dead_process_is_not_in_the_way(tmp_path):
    holder = hold(tmp_path)
    kill(signal.SIGKILL, holder)()
    wait(holder)
    assert short_run(tmp_path, "--stages=pretrain", "--pretrain-epochs=1") == 0

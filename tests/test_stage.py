"""The stages: what learns, the optimizer, the schedule, and what each step is given of it."""

import inspect

import pytest
import torch
from disks import STEP_FUNCTIONS, watch_steps
from helpers import batch, learning, pair, rng
from hypothesis import given
from hypothesis import strategies as st

from blockdrop_min.curriculum import Curriculum
from blockdrop_min.finetuning import Finetuning
from blockdrop_min.pretraining import Pretraining
from blockdrop_min.stage import fading

STAGES = [Pretraining, Curriculum, Finetuning]
each_stage = pytest.mark.parametrize("kind", STAGES)


def step_of(monkeypatch, stage, epoch=0, progress=0.0, fixed=None):
    """(name, arguments by name) of the step function that a stage calls."""
    model = learning(pair(fixed=fixed, num_classes=5), resnet=True, policy=True)
    steps = {name: inspect.signature(vars(module)[name]) for name, module in STEP_FUNCTIONS.items()}
    seen = []
    watch_steps(monkeypatch, lambda name, *given: seen.append((name, steps[name].bind(*given))))
    generator = rng(0)
    x, y = batch()
    loss, logged = stage.step(model, x, y, epoch, progress, generator)
    ((name, bound),) = seen
    given = bound.arguments
    assert (given["model"], given["x"], given["y"]) == (model, x, y)
    assert given.get("generator", generator) is generator
    assert (loss.shape, len(logged["correct"])) == ((), len(x))
    return name, given


# ------------------------------------------------------------------------- what a stage trains
@pytest.mark.parametrize(
    ("kind", "resnet", "policy"),
    [(Pretraining, True, False), (Curriculum, False, True), (Finetuning, True, True)],
)
def test_a_stage_begins_with_training_mode_and_gradients_for_what_learns(kind, resnet, policy):
    for before in (True, False):
        model = learning(pair(), resnet=before, policy=before)
        kind().begin(model)
        for network, learns in ((model.resnet, resnet), (model.policy, policy)):
            assert {module.training for module in network.modules()} == {learns}
            assert {p.requires_grad for p in network.parameters()} == {learns}


@pytest.mark.parametrize(
    ("stage", "network"),
    [(Pretraining(lr=0.05), "resnet"), (Finetuning(lr=0.05, sgd=True), "")],
)
def test_pretraining_and_where_asked_finetuning_have_the_sgd_of_their_field(stage, network):
    model = pair()
    optimizer = stage.optimizer(model)
    assert type(optimizer) is torch.optim.SGD
    expected = {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
    assert expected.items() <= optimizer.param_groups[0].items()
    assert optimizer.param_groups[0]["params"] == list(model.get_submodule(network).parameters())


@pytest.mark.parametrize("kind", [Curriculum, Finetuning])
def test_the_later_stages_have_the_authors_adam(kind):
    model = pair()
    optimizer = kind(lr=0.25).optimizer(model)
    assert type(optimizer) is torch.optim.Adam
    expected = {"lr": 0.25, "weight_decay": 0, "betas": (0.9, 0.999)}
    assert expected.items() <= optimizer.param_groups[0].items()
    assert optimizer.param_groups[0]["params"] == list(model.parameters())


# ------------------------------------------------------------------------- the learning rate
@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("cosine", {0: 0, 0.1: 0.5, 0.2: 1, 0.6: 0.5, 1: 0}),
        ("constant", {0: 1, 0.79: 1, 0.8: 1, 1: 1}),
        ("step", {0: 1, 0.79: 1, 0.8: 0.1, 1: 0.1}),  # the authors'
    ],
)
@each_stage
def test_the_learning_rates_schedule_by_hand(kind, schedule, expected):
    stage = kind(schedule=schedule)
    found = [stage.rate(progress) for progress in expected]
    assert found == pytest.approx(list(expected.values()), abs=1e-6)


# ------------------------------------------------------------------------- which blocks are free
@pytest.mark.parametrize(("kind", "free"), [(Pretraining, False), (Finetuning, True)])
def test_no_block_is_free_in_pretraining_and_every_block_in_finetuning(kind, free):
    assert kind().free(0, 4).tolist() == [free] * 4


@pytest.mark.parametrize("free_by", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize(("epochs", "warm"), [(3, 0), (8, 2), (20, 2)])
def test_blocks_become_free_after_the_warm_start_from_the_last_to_the_first(free_by, epochs, warm):
    stage = Curriculum(epochs=epochs, warm_epochs=warm, free_by=free_by)
    freed = [stage.free(epoch, 9).tolist() for epoch in range(epochs)]
    counts = [sum(free) for free in freed]
    assert freed[:warm] == [[False] * 9] * warm
    assert counts == sorted(counts)
    assert freed == [sorted(free) for free in freed]
    assert free_by == 0 or counts[-1] == 9


@pytest.mark.parametrize(("fraction", "epochs"), [(0.07, 100), (0.14, 50), (0.55, 100)])
def test_a_fraction_of_the_epochs_frees_all_blocks_and_no_epoch_more(fraction, epochs):
    # 0.07 * 100 is 7.000000000000001, which must not become 8.
    stage = Curriculum(epochs=epochs, warm_epochs=0, free_by=fraction)
    last = round(fraction * epochs) - 1
    assert stage.free(last - 1, 900).sum() < 900
    assert stage.free(last, 900).sum() == 900


# ------------------------------------------------------------------------- fading
@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_fading_rises_from_0_to_1_and_stays_there(one, other, until):
    early, late = sorted((one, other))
    assert 0 <= fading(early, until) <= fading(late, until) <= 1
    assert fading(0, until) == 0
    assert until == 0 or fading(until, until) == 1


def test_with_0_nothing_ever_fades():
    assert fading(1.0, 0) == 0


# ------------------------------------------------------------------------- what the steps are given
@pytest.mark.parametrize(("epoch", "expected"), [(0, "warm"), (1, "warm"), (2, "curriculum")])
def test_a_curriculum_begins_with_its_warm_start(monkeypatch, epoch, expected):
    stage = Curriculum(epochs=5, warm_epochs=2)
    assert step_of(monkeypatch, stage, epoch, epoch / 5)[0].startswith(expected)


@pytest.mark.parametrize(("progress", "faded"), [(0.25, 0.5), (0.5, 1), (0.9, 1)])
def test_a_curriculum_hands_its_settings_to_its_step(monkeypatch, progress, faded):
    weights = {"alpha": 0.7, "beta": 0.3, "gamma": 1.5, "classify": 0.25}
    stage = Curriculum(epochs=20, fade_by=0.5, free_by=1, warm_epochs=0, **weights)
    _, given = step_of(monkeypatch, stage, epoch=5, progress=progress)
    assert given["alpha"] == pytest.approx(0.7 + 0.3 * faded)
    assert given["beta"] == pytest.approx(0.3 * (1 - faded))
    assert (given["gamma"], given["classify"]) == (1.5, 0.25)
    assert given["free"].tolist() == stage.free(5, 3).tolist() == [False, False, True]


@pytest.mark.parametrize(("progress", "faded"), [(0.0, 0), (0.2, 0.5), (0.3, 0.75)])
def test_finetuning_hands_its_settings_to_its_step(monkeypatch, progress, faded):
    stage = Finetuning(alpha=0.7, beta=0.2, gamma=2.5, full_fraction=0.375, settle_by=0.4)
    name, given = step_of(monkeypatch, stage, progress=progress)
    assert name == "finetune_step"
    assert given["alpha"] == pytest.approx(0.7 + 0.3 * faded)
    assert given["beta"] == pytest.approx(0.2 * (1 - faded))
    assert (given["gamma"], given["full_fraction"]) == (2.5, 0.375)


@pytest.mark.parametrize(("progress", "fixed"), [(0.5, None), (0.0, [1.0, 0.0, 1.0])])
def test_a_policy_that_has_settled_or_is_fixed_is_no_longer_sampled(monkeypatch, progress, fixed):
    name, given = step_of(monkeypatch, Finetuning(gamma=2.5), progress=progress, fixed=fixed)
    assert (name, given["gamma"]) == ("settled_step", 2.5)


def test_finetuning_that_never_settles_samples_to_the_end(monkeypatch):
    name, given = step_of(monkeypatch, Finetuning(settle_by=0, alpha=0.8), progress=0.999)
    assert (name, given["alpha"]) == ("finetune_step", 0.8)

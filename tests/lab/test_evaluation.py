"""What a policy achieves: by hand, and against the model run image by image."""

import pytest
import torch
from helpers import assert_equal, masks, pair, policies, rng, seeds, state
from hypothesis import given
from hypothesis import strategies as st
from runs import same, split

from blockdrop_min import force_on, policy_cost, resnet_cost
from blockdrop_min.lab import evaluation
from blockdrop_min.lab.data import Split, centre_crop
from blockdrop_min.lab.evaluation import Result, mean_and_error, rank_correlation, run_policy

POLICIES = torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 0, 1], [1, 1, 1]])
FLOPS = torch.tensor([50.0, 20.0, 50.0, 80.0])
RESULT = Result(torch.tensor([True, False, True, True]), POLICIES, FLOPS, flops_full=100)


# ---------------------------------------------------------------------------------------- by hand
def test_statistics_by_hand():
    expected = {
        "accuracy": 3 / 4,
        "blocks_mean": (2 + 0 + 2 + 3) / 4,
        "blocks_std": ((2 * 0.25**2 + 1.75**2 + 1.25**2) / 4) ** 0.5,  # 2, 0, 2, 3 around 1.75
        "distinct_policies": 3,
        "flops_mean": 50,
        "flops_std": ((0 + 30**2 + 0 + 30**2) / 4) ** 0.5,
        "flops_saved": 1 - 50 / 100,
    }
    assert {name: getattr(RESULT, name) for name in expected} == pytest.approx(expected)


def test_the_standard_error_is_the_deviation_over_the_root_of_the_number():
    # 1, 2, 3, 6: mean 3, squared deviations 4, 1, 0, 9, variance 14 / 3, error sqrt(14 / 12)
    found = mean_and_error(torch.tensor([1.0, 2.0, 3.0, 6.0]))
    assert found == pytest.approx((3, (14 / 12) ** 0.5))
    alone = mean_and_error(torch.tensor([4.0]))
    assert alone == (4, 0) and {type(number) for number in found + alone} == {float}


# -------------------------------------------------------------------------------------- two roads
def test_running_the_policy_equals_one_image_at_a_time_through_the_model():
    model, part = pair(), split(40)
    result = run_policy(model, part, 9)
    for i in range(40):
        logits, u = model(part.images[i : i + 1])
        assert torch.equal(result.u[i], u[0])
        assert bool(result.correct[i]) == (logits.argmax() == part.labels[i]).item()


@given(seeds, st.booleans())
def test_a_given_policy_is_run_image_by_image(seed, one_for_all):
    model, part, u = pair(), split(7, seed), policies(7, 3, seed).float()
    u = u[0].expand(7, 3) if one_for_all else u
    result = run_policy(model, part, 9, u[0] if one_for_all else u)
    logits = model.resnet(model.prepare(part.images), u)
    assert torch.equal(result.u, u)
    assert torch.equal(result.correct, logits.argmax(1) == part.labels)


def test_images_are_cropped_in_the_middle():
    model, part = pair(), split(9, size=13)
    cropped = Split(centre_crop(part.images, 9), part.labels)
    assert same(run_policy(model, part, 9), run_policy(model, cropped, 9))


@pytest.mark.parametrize("u", [None, policies(23, 3).float()])
def test_more_images_than_fit_a_batch_change_nothing(monkeypatch, u):
    model, part = pair(), split(23)
    whole = run_policy(model, part, 9, u)
    monkeypatch.setattr(evaluation, "BATCH", 5)
    assert same(run_policy(model, part, 9, u), whole)


def test_flops_are_those_of_the_kept_blocks_and_of_the_policy_network():
    model = pair()
    result, cost = run_policy(model, split(20), 9), resnet_cost(model.resnet, 9)
    assert torch.equal(result.flops, cost.of(result.u) + policy_cost(model.policy, 9))
    assert len(result.flops.unique()) > 1 and result.flops_full == cost.full


@pytest.mark.parametrize("fixed", [None, [1.0, 0.0, 1.0]])
def test_a_policy_that_looks_at_no_image_pays_for_no_policy_network(fixed):
    model, u = pair(fixed=fixed), torch.tensor([1.0, 0.0, 1.0])
    result = run_policy(model, split(), 9, None if fixed else u)
    assert set(result.flops.tolist()) == {resnet_cost(model.resnet, 9).of(u[None]).item()}


def test_a_row_has_the_digits_of_a_policy_that_is_one_for_all_and_no_others():
    assert RESULT.row() == {"accuracy": 3 / 4, "blocks": 7 / 4, "flops": 50}
    one = Result(RESULT.correct[:2], torch.tensor([[1.0, 0, 1]] * 2), RESULT.flops[:2], 100)
    assert one.row()["policy"] == "101"


@given(seeds, st.integers(2, 12))
def test_rank_correlation_is_the_correlation_of_the_ranks(seed, count):
    a, b = torch.randint(5, (2, count), generator=rng(seed)).double()

    def ranks(v):  # how many are smaller, plus half of those that are equal
        return torch.tensor([(v < x).sum() + (v == x).sum() / 2 for x in v]).double()

    expected = torch.corrcoef(torch.stack([ranks(a), ranks(b)]))[0, 1].nan_to_num(0)
    assert rank_correlation(a, b) == pytest.approx(expected.item(), abs=1e-5)


@given(masks(3))
def test_blocks_that_are_not_free_are_kept(free):
    model, part = pair(), split(30)
    u = run_policy(model, part, 9).u
    assert torch.equal(run_policy(model, part, 9, free=free).u, force_on(u, free))


def test_measuring_leaves_no_trace_in_the_networks():
    model = pair().train()
    before = state(model)
    run_policy(model, split(), 9)
    assert_equal(state(model), before)
    assert not any(module.training for module in model.modules())


# ------------------------------------------------------------------------------------------ edges
def test_a_single_image_is_a_test_set():
    result = run_policy(pair(), split(1), 9)
    assert (result.blocks_std, result.flops_std, result.distinct_policies) == (0, 0, 1)
    assert rank_correlation(torch.tensor([7]), torch.tensor([7])) == 0

"""What a policy achieved, and the rivals that it is measured against."""

import pytest
import torch
from helpers import assert_same, every_policy, masks, policies, rng, seeds
from hypothesis import given
from hypothesis import strategies as st
from runs import pair, small_data, split

from blockdrop_min import BlockDrop, force_on, greedy, policy_cost, resnet_cost
from blockdrop_min.lab.data import Split, centre_crop
from blockdrop_min.lab.evaluation import Result, best_static_policy, compare, pooled, rank_correlation, run_policy

RESULT = Result(
    correct=torch.tensor([True, False, True, True]),
    u=torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 0, 1], [1, 1, 1]]),
    flops=torch.tensor([50.0, 20.0, 50.0, 80.0]),
    flops_full=100,
)


def same(one, other):
    return all(torch.equal(getattr(one, part), getattr(other, part)) for part in ("correct", "u", "flops"))


# ------------------------------------------------------------------------------------------------------- by hand
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("accuracy", 3 / 4), ("blocks_mean", (2 + 0 + 2 + 3) / 4), ("distinct_policies", 3), ("flops_mean", 50),
        ("blocks_std", ((2 * 0.25**2 + 1.75**2 + 1.25**2) / 4) ** 0.5),  # 2, 0, 2, 3 around 1.75
        ("flops_std", ((0 + 30**2 + 0 + 30**2) / 4) ** 0.5), ("flops_saved", 1 - 50 / 100),
    ],
)  # fmt: skip
def test_statistics_by_hand(name, value):
    assert getattr(RESULT, name) == pytest.approx(value)


@pytest.mark.parametrize(
    ("a", "b", "rho"),
    [
        ([1, 2, 3], [10, 20, 30], 1), ([1, 2, 3], [9, 8, -7], -1), ([1, 2, 3, 4], [2, 1, 4, 3], 0.6),
        ([0, 1, 1, 5], [0, 1, 2, 3], 4.5 / (4.5 * 5) ** 0.5),  # ranks 1, 2.5, 2.5, 4: deviations -1.5, 0, 0, 1.5
        ([2, 2, 2], [1, 2, 3], 0), ([7], [7], 0),
    ],
)  # fmt: skip
def test_rank_correlations_by_hand(a, b, rho):
    assert rank_correlation(torch.tensor(a), torch.tensor(b)) == pytest.approx(rho)


def test_draws_are_pooled_over_all_their_images():
    other = Result(torch.tensor([False]), torch.zeros(1, 3), torch.tensor([20.0]), 100)
    together = pooled([RESULT, other])
    assert (together.accuracy, together.blocks_mean, together.flops_mean) == (3 / 5, 7 / 5, 44)
    assert together.flops_full == 100


# ----------------------------------------------------------------------------------------------------- two roads
def test_running_the_policy_equals_one_image_at_a_time_through_the_model():
    model, part = pair(), split(40)
    result = run_policy(model, part, 9)
    for i in range(40):
        logits, u = model(part.images[i : i + 1])
        assert torch.equal(result.u[i], u[0]) and bool(result.correct[i]) == (logits.argmax() == part.labels[i]).item()


@given(seeds, st.booleans())
def test_a_given_policy_is_run_image_by_image(seed, one_for_all):
    model, part = pair(), split(7, seed)
    u = policies(7, 3, seed).float()
    u = u[0].expand(7, 3) if one_for_all else u
    result = run_policy(model, part, 9, u[0] if one_for_all else u)
    logits = model.resnet(model.prepare(part.images), u)
    assert torch.equal(result.u, u) and torch.equal(result.correct, logits.argmax(1) == part.labels)


def test_images_are_cropped_in_the_middle():
    model, part = pair(), split(9, size=13)
    cropped = Split(centre_crop(part.images, 9), part.labels)
    assert same(run_policy(model, part, 9), run_policy(model, cropped, 9))


def test_more_images_than_fit_a_batch_change_nothing(monkeypatch):
    model, part, u = pair(), split(23), policies(23, 3).float()
    whole = [run_policy(model, part, 9), run_policy(model, part, 9, u)]
    monkeypatch.setattr("blockdrop_min.report.BATCH", 5)
    parts = [run_policy(model, part, 9), run_policy(model, part, 9, u)]
    assert all(same(one, other) for one, other in zip(whole, parts, strict=True))


def test_flops_are_those_of_the_kept_blocks_and_of_the_policy_network():
    model, part = pair(), split(20)
    result, cost = run_policy(model, part, 9), resnet_cost(model.resnet, 9)
    expected = [cost.fixed + sum(b for b, keep in zip(cost.blocks, u, strict=True) if keep) for u in result.u.tolist()]
    assert result.flops.tolist() == [flops + policy_cost(model.policy, 9) for flops in expected]
    assert result.flops_full == cost.full


@given(seeds, st.integers(2, 12))
def test_rank_correlation_is_the_correlation_of_the_ranks(seed, count):
    a, b = torch.randint(5, (2, count), generator=rng(seed)).double()

    def ranks(v):  # how many are smaller, plus half of those that are equal
        return torch.tensor([(v < x).sum() + (v == x).sum() / 2 for x in v]).double()

    expected = torch.corrcoef(torch.stack([ranks(a), ranks(b)]))[0, 1].nan_to_num(0)
    assert rank_correlation(a, b) == pytest.approx(expected.item(), abs=1e-5)


# ---------------------------------------------------------------------------------------------------------- laws
def test_a_policy_that_looks_at_no_image_costs_nothing():
    fixed, learned = pair(fixed=[1.0, 0.0, 1.0]), pair()
    u = torch.tensor([1.0, 0.0, 1.0])
    results = [run_policy(fixed, split(), 9), run_policy(learned, split(), 9, u), run_policy(fixed, split(), 9, u)]
    expected = resnet_cost(fixed.resnet, 9).of(u[None]).item()
    assert [set(result.flops.tolist()) for result in results] == [{expected}] * 3


def test_the_full_network_saves_nothing_and_the_policy_network_costs_extra():
    model, part = pair(), split()
    assert run_policy(model, part, 9, torch.ones(3)).flops_saved == 0
    always = BlockDrop(model.resnet, model.policy, threshold=0.0)
    assert run_policy(always, part, 9).flops_saved < 0


@given(masks(3))
def test_blocks_that_are_not_free_are_kept(free):
    model, part = pair(), split(30)
    assert torch.equal(run_policy(model, part, 9, free=free).u, force_on(run_policy(model, part, 9).u, free))


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.5, 0.7, 1.1])
def test_a_threshold_takes_the_place_of_the_models(threshold):
    model, part = pair(), split(30)
    expected = greedy(model.policy(model.prepare(part.images)), threshold)
    assert torch.equal(run_policy(model, part, 9, threshold=threshold).u, expected)


def test_a_higher_threshold_keeps_no_more_blocks():
    counts = [run_policy(pair(), split(30), 9, threshold=t).blocks_mean for t in (0.0, 0.3, 0.5, 0.7, 1.1)]
    assert counts == sorted(counts, reverse=True) and (counts[0], counts[-1]) == (3, 0)


def test_measuring_leaves_no_trace_in_the_networks():
    model = pair().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    run_policy(model, split(), 9)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not model.training


# -------------------------------------------------------------------------------------------- laws: the best static
def planted(monkeypatch, value):
    """run_policy gives policies the accuracy value(u); returns the list of all policies that it was asked for."""
    asked = []

    def run(model, part, crop, u):
        asked.append(tuple(u.tolist()))
        return type("Found", (), {"accuracy": value(u)})

    monkeypatch.setattr("blockdrop_min.report.run_policy", run)
    return asked


def hamming(best):
    return lambda u: -(u - torch.tensor(best)).abs().sum().item()


@pytest.mark.parametrize("best", [u for u in every_policy(5).float().tolist() if sum(u) == 2])
def test_the_search_finds_the_planted_best_policy(monkeypatch, best):
    planted(monkeypatch, hamming(best))
    assert best_static_policy(None, None, 9, [torch.tensor([1.0, 1, 0, 0, 0])]).tolist() == best


def test_the_search_keeps_the_number_of_blocks_and_tries_no_policy_twice(monkeypatch):
    asked = planted(monkeypatch, hamming([0.0, 0, 0, 1, 1, 1]))
    best_static_policy(None, None, 9, [torch.tensor([1.0, 1, 1, 0, 0, 0]), torch.tensor([1.0, 0, 1, 0, 1, 0])])
    assert {sum(u) for u in asked} == {3} and len(asked) == len(set(asked))


def test_the_search_starts_from_the_best_of_its_starts_and_is_no_worse(monkeypatch):
    planted(monkeypatch, lambda u: float(u[2] * 0.5 + u[0] * u[1]))
    starts = [torch.tensor([0.0, 0, 1, 1]), torch.tensor([1.0, 1, 0, 0]), torch.tensor([0.0, 1, 0, 1])]
    assert best_static_policy(None, None, 9, starts).tolist() == [1, 1, 0, 0]


def test_the_search_stops_after_a_number_of_policies(monkeypatch):
    monkeypatch.setattr("blockdrop_min.report.SEARCH", 7)
    asked = planted(monkeypatch, hamming([0.0] * 10 + [1.0] * 10))
    best_static_policy(None, None, 9, [torch.tensor([1.0] * 10 + [0.0] * 10)])
    assert len(asked) == 7


@pytest.mark.parametrize("start", [[1.0, 1, 1], [0.0, 0, 0]])
def test_there_is_nothing_to_search_if_all_blocks_are_kept_or_none(monkeypatch, start):
    planted(monkeypatch, hamming([1.0, 1, 1]))
    assert best_static_policy(None, None, 9, [torch.tensor(start)]).tolist() == start


# ------------------------------------------------------------------------------------------------ laws: all rivals
@pytest.fixture(scope="module")
def rivals():
    """(model, data, results) of a network of six blocks."""
    torch.set_num_threads(1)
    model, data = pair(segments=(2, 2, 2)), small_data(60)
    return model, data, compare(model, data)


def test_all_rivals_are_measured(rivals):
    assert list(rivals[2]) == ["full", "blockdrop", "first", "random", "distribute", "best static", "blind"]


def test_blockdrop_runs_its_own_policy_on_the_test_set(rivals):
    model, data, results = rivals
    assert same(results["blockdrop"], run_policy(model, data.test, 9))
    assert same(results["full"], run_policy(model, data.test, 9, torch.ones(6)))


def test_the_static_rivals_keep_as_many_blocks_as_blockdrop_does_on_average(rivals):
    keep = round(rivals[2]["blockdrop"].blocks_mean)
    assert 1 < keep < 6
    for name in ("first", "random", "distribute", "best static"):
        assert rivals[2][name].u.sum(1).unique().tolist() == [keep]


def test_the_static_rivals_are_one_policy_for_all_images(rivals):
    assert [rivals[2][name].distinct_policies for name in ("full", "first", "distribute", "best static")] == [1] * 4
    assert rivals[2]["first"].u[0].tolist() == sorted(rivals[2]["first"].u[0].tolist(), reverse=True)


def test_random_rivals_are_several_draws_over_all_test_images(rivals):
    assert len(rivals[2]["random"].correct) > 60 and rivals[2]["random"].distinct_policies > 1
    assert len(rivals[2]["blind"].correct) > 60


def test_the_blind_rival_keeps_each_block_as_often_as_blockdrop(rivals):
    ours, blind = (rivals[2][name].u.mean(0) for name in ("blockdrop", "blind"))
    assert_same(blind, ours, 0.15)  # of 180 draws, four standard deviations at most
    assert all(blind[k] == ours[k] for k in range(6) if ours[k] in (0, 1))


def test_the_blind_rival_does_not_follow_the_image(rivals):
    ours, blind = rivals[2]["blockdrop"].u, rivals[2]["blind"].u[:60]
    assert (ours != blind).any(1).double().mean() > 0.2


def test_the_best_static_policy_is_chosen_on_validation_and_beats_its_starts_there(rivals):
    model, data, results = rivals

    def val(name):
        return run_policy(model, data.val, 9, results[name].u[0]).accuracy

    assert val("best static") >= max(val("first"), val("distribute"))


def test_only_blockdrop_pays_for_the_policy_network(rivals):
    model, _, results = rivals
    cost = resnet_cost(model.resnet, 9)
    for name, result in results.items():
        extra = policy_cost(model.policy, 9) if name == "blockdrop" else 0
        assert torch.equal(result.flops, cost.of(result.u) + extra)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_random_rivals_depend_on_the_seed_alone(rivals, seed):
    again = compare(rivals[0], rivals[1], seed)
    assert all(same(again[name], rivals[2][name]) for name in ("full", "blockdrop", "first", "distribute", "best static"))
    assert all(same(again[name], rivals[2][name]) == (seed == 0) for name in ("random", "blind"))


def test_a_policy_that_drops_every_block_is_compared_with_one_block():
    model = pair()
    results = compare(BlockDrop(model.resnet, model.policy, threshold=1.1), small_data(10))
    assert results["blockdrop"].blocks_mean == 0 and results["first"].blocks_mean == 1


# --------------------------------------------------------------------------------------------------------- edges
def test_a_single_image_is_a_test_set():
    result = run_policy(pair(), split(1), 9)
    assert (result.blocks_std, result.flops_std, result.distinct_policies) == (0, 0, 1)

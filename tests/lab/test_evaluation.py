"""What a policy achieves, and the rivals that it is measured against."""

import pytest
import torch
from helpers import assert_same, every_policy, masks, pair, policies, rng, seeds
from hypothesis import given
from hypothesis import strategies as st
from runs import small_data, split

from blockdrop_min import force_on, greedy, policy_cost, resnet_cost
from blockdrop_min.lab import evaluation
from blockdrop_min.lab.data import Split, centre_crop
from blockdrop_min.lab.evaluation import (
    Result,
    best_static_policy,
    dealt_loss,
    evaluate_policies,
    mean_and_error,
    pooled,
    rank_correlation,
    run_policy,
)

RESULT = Result(
    correct=torch.tensor([True, False, True, True]),
    u=torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 0, 1], [1, 1, 1]]),
    flops=torch.tensor([50.0, 20.0, 50.0, 80.0]),
    flops_full=100,
)
RIVALS = ["full", "first", "random", "distribute", "best static", "blind"]


def same(one, other):
    parts = ("correct", "u", "flops")
    return all(torch.equal(getattr(one, part), getattr(other, part)) for part in parts)


def with_bias(model, bias):
    """The model with a policy network of which the logits are this bias [K], whatever the image."""
    with torch.no_grad():
        model.policy.logit.weight.zero_()
        model.policy.logit.bias.copy_(torch.as_tensor(bias))
    return model


# ---------------------------------------------------------------------------------------- by hand
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("accuracy", 3 / 4),
        ("blocks_mean", (2 + 0 + 2 + 3) / 4),
        ("blocks_std", ((2 * 0.25**2 + 1.75**2 + 1.25**2) / 4) ** 0.5),  # 2, 0, 2, 3 around 1.75
        ("distinct_policies", 3),
        ("flops_mean", 50),
        ("flops_std", ((0 + 30**2 + 0 + 30**2) / 4) ** 0.5),
        ("flops_saved", 1 - 50 / 100),
    ],
)
def test_statistics_by_hand(name, value):
    assert getattr(RESULT, name) == pytest.approx(value)


@pytest.mark.parametrize(
    ("a", "b", "rho"),
    [
        ([1, 2, 3], [10, 20, 30], 1),
        ([1, 2, 3], [9, 8, -7], -1),
        ([1, 2, 3, 4], [2, 1, 4, 3], 0.6),
        # Ranks 1, 2.5, 2.5, 4: deviations -1.5, 0, 0, 1.5.
        ([0, 1, 1, 5], [0, 1, 2, 3], 4.5 / (4.5 * 5) ** 0.5),
        ([2, 2, 2], [1, 2, 3], 0),
        ([7], [7], 0),
    ],
)
def test_rank_correlations_by_hand(a, b, rho):
    assert rank_correlation(torch.tensor(a), torch.tensor(b)) == pytest.approx(rho)


def test_draws_are_pooled_over_all_their_images():
    other = Result(torch.tensor([False]), torch.zeros(1, 3), torch.tensor([20.0]), 100)
    together = pooled([RESULT, other])
    assert (together.accuracy, together.blocks_mean, together.flops_mean) == (3 / 5, 7 / 5, 44)
    assert together.flops_full == 100


def test_the_standard_error_is_the_deviation_over_the_root_of_the_number():
    # 1, 2, 3, 6: mean 3, squared deviations 4, 1, 0, 9, variance 14 / 3, error sqrt(14 / 12)
    values = torch.tensor([1.0, 2.0, 3.0, 6.0])
    assert mean_and_error(values) == pytest.approx((3, (14 / 12) ** 0.5))


def test_a_single_value_has_no_standard_error():
    assert mean_and_error(torch.tensor([4.0])) == (4, 0)


# -------------------------------------------------------------------------------------- two roads
def test_running_the_policy_equals_one_image_at_a_time_through_the_model():
    model = pair()
    part = split(40)
    result = run_policy(model, part, 9)
    for i in range(40):
        logits, u = model(part.images[i : i + 1])
        assert torch.equal(result.u[i], u[0])
        assert bool(result.correct[i]) == (logits.argmax() == part.labels[i]).item()


@given(seeds, st.booleans())
def test_a_given_policy_is_run_image_by_image(seed, one_for_all):
    model = pair()
    part = split(7, seed)
    u = policies(7, 3, seed).float()
    u = u[0].expand(7, 3) if one_for_all else u
    result = run_policy(model, part, 9, u[0] if one_for_all else u)
    logits = model.resnet(model.prepare(part.images), u)
    assert torch.equal(result.u, u)
    assert torch.equal(result.correct, logits.argmax(1) == part.labels)


def test_images_are_cropped_in_the_middle():
    model = pair()
    part = split(9, size=13)
    cropped = Split(centre_crop(part.images, 9), part.labels)
    assert same(run_policy(model, part, 9), run_policy(model, cropped, 9))


def test_more_images_than_fit_a_batch_change_nothing(monkeypatch):
    model = pair()
    part = split(23)
    u = policies(23, 3).float()
    whole = [run_policy(model, part, 9), run_policy(model, part, 9, u)]
    monkeypatch.setattr(evaluation, "BATCH", 5)
    parts = [run_policy(model, part, 9), run_policy(model, part, 9, u)]
    assert all(same(one, other) for one, other in zip(whole, parts, strict=True))


def test_flops_are_those_of_the_kept_blocks_and_of_the_policy_network():
    model = pair()
    result = run_policy(model, split(20), 9)
    cost = resnet_cost(model.resnet, 9)
    for u, flops in zip(result.u.tolist(), result.flops.tolist(), strict=True):
        blocks = sum(b for b, keep in zip(cost.blocks, u, strict=True) if keep)
        assert flops == cost.fixed + blocks + policy_cost(model.policy, 9)
    assert result.flops_full == cost.full


@given(seeds, st.integers(2, 12))
def test_rank_correlation_is_the_correlation_of_the_ranks(seed, count):
    a, b = torch.randint(5, (2, count), generator=rng(seed)).double()

    def ranks(v):  # how many are smaller, plus half of those that are equal
        return torch.tensor([(v < x).sum() + (v == x).sum() / 2 for x in v]).double()

    expected = torch.corrcoef(torch.stack([ranks(a), ranks(b)]))[0, 1].nan_to_num(0)
    assert rank_correlation(a, b) == pytest.approx(expected.item(), abs=1e-5)


# ------------------------------------------------------------------------------------------- laws
def test_a_policy_that_looks_at_no_image_costs_nothing():
    fixed = pair(fixed=[1.0, 0.0, 1.0])
    u = torch.tensor([1.0, 0.0, 1.0])
    results = [run_policy(fixed, split(), 9), run_policy(fixed, split(), 9, u)]
    results.append(run_policy(pair(), split(), 9, u))
    expected = resnet_cost(fixed.resnet, 9).of(u[None]).item()
    assert [set(result.flops.tolist()) for result in results] == [{expected}] * 3


def test_the_full_network_saves_nothing():
    assert run_policy(pair(), split(), 9, torch.ones(3)).flops_saved == 0


def test_the_policy_network_costs_extra():
    assert run_policy(with_bias(pair(), [9.0] * 3), split(), 9).flops_saved < 0


@given(masks(3))
def test_blocks_that_are_not_free_are_kept(free):
    model = pair()
    part = split(30)
    u = run_policy(model, part, 9).u
    assert torch.equal(run_policy(model, part, 9, free=free).u, force_on(u, free))


def test_the_policy_is_the_most_likely_one():
    model = pair()
    part = split(30)
    expected = greedy(model.policy(model.prepare(part.images)))
    assert torch.equal(run_policy(model, part, 9).u, expected)


def test_measuring_leaves_no_trace_in_the_networks():
    model = pair().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    run_policy(model, split(), 9)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not model.training


def test_images_in_files_are_read_by_as_many_processes_as_asked_for(monkeypatch):
    seen = []
    batches = Split.batches

    def noting(self, *arguments, workers=0, **options):
        seen.append(workers)
        return batches(self, *arguments, **options)

    monkeypatch.setattr(Split, "batches", noting)
    evaluate_policies(pair(), small_data(10), workers=3)
    dealt_loss(
        pair(), small_data(10), run_policy(pair(), small_data(10).test, 9, workers=3), workers=3
    )
    assert set(seen) == {3}


# -------------------------------------------------------------------------- laws: the best static
def planted(monkeypatch, value):
    """run_policy gives policies the accuracy value(u). Returns the list of those it was given."""
    given = []

    def run(model, part, crop, u, workers):
        given.append(tuple(u.tolist()))
        return type("Planted", (), {"accuracy": value(u)})

    monkeypatch.setattr(evaluation, "run_policy", run)
    return given


def search(*start):
    return best_static_policy(None, None, 9, [torch.tensor(u) for u in start])


def hamming(best):
    return lambda u: -(u - torch.tensor(best)).abs().sum().item()


@pytest.mark.parametrize("best", [u for u in every_policy(5).float().tolist() if sum(u) == 2])
def test_the_search_finds_the_planted_best_policy(monkeypatch, best):
    planted(monkeypatch, hamming(best))
    assert search([1.0, 1, 0, 0, 0]).tolist() == best


def test_the_search_keeps_the_number_of_blocks_and_tries_no_policy_twice(monkeypatch):
    given = planted(monkeypatch, hamming([0.0, 0, 0, 1, 1, 1]))
    search([1.0, 1, 1, 0, 0, 0], [1.0, 0, 1, 0, 1, 0], [1.0, 1, 1, 0, 0, 0])
    assert {sum(u) for u in given} == {3}
    assert len(given) == len(set(given))


def test_the_search_starts_from_the_best_of_its_starts_and_is_no_worse(monkeypatch):
    planted(monkeypatch, lambda u: float(u[2] * 0.5 + u[0] * u[1]))
    assert search([0.0, 0, 1, 1], [1.0, 1, 0, 0], [0.0, 1, 0, 1]).tolist() == [1, 1, 0, 0]


def test_the_search_stops_after_a_number_of_policies(monkeypatch):
    monkeypatch.setattr(evaluation, "SEARCH", 7)
    given = planted(monkeypatch, hamming([0.0] * 10 + [1.0] * 10))
    search([1.0] * 10 + [0.0] * 10)
    assert len(given) == 7


@pytest.mark.parametrize("start", [[1.0, 1, 1], [0.0, 0, 0]])
def test_there_is_nothing_to_search_if_all_blocks_are_kept_or_none(monkeypatch, start):
    planted(monkeypatch, hamming([1.0, 1, 1]))
    assert search(start).tolist() == start


# ------------------------------------------------------------------------------- laws: all rivals
@pytest.fixture(scope="module")
def rivals():
    """(model, data, results) of a network of six blocks."""
    torch.set_num_threads(1)
    model = pair(segments=(2, 2, 2))
    data = small_data(60)
    return model, data, evaluate_policies(model, data)


def splits_seen(monkeypatch, data, act):
    """For each pass of run_policy in act(): the name of its split and the policy [K] or [N, K]."""
    seen = []
    run = run_policy

    def noting(model, split, crop, u=None, free=None, workers=0):
        name = next(name for name in ("train", "val", "test") if split is getattr(data, name))
        seen.append((name, u))
        return run(model, split, crop, u, free, workers)

    monkeypatch.setattr(evaluation, "run_policy", noting)
    act()
    return seen


def test_all_rivals_are_measured(rivals):
    assert set(rivals[2]) == {"blockdrop", *RIVALS}
    assert list(rivals[2])[:2] == ["full", "blockdrop"]


def test_blockdrop_runs_its_own_policy_on_the_test_set(rivals):
    model, data, results = rivals
    assert same(results["blockdrop"], run_policy(model, data.test, 9))


@pytest.mark.parametrize("name", ["full", "first", "distribute", "best static"])
def test_a_static_rival_is_its_one_policy_run_on_the_test_set(rivals, name):
    model, data, results = rivals
    assert results[name].distinct_policies == 1
    assert same(results[name], run_policy(model, data.test, 9, results[name].u[0]))


@pytest.mark.parametrize("name", ["random", "blind"])
def test_a_random_rival_is_three_draws_run_on_the_whole_test_set(rivals, name):
    model, data, results = rivals
    draws = results[name].u.chunk(3)
    assert same(results[name], pooled([run_policy(model, data.test, 9, u) for u in draws]))
    assert results[name].distinct_policies > 1


def test_the_full_rival_keeps_every_block_and_the_first_one_the_first_blocks(rivals):
    assert rivals[2]["full"].u.min() == 1
    first = rivals[2]["first"].u[0].tolist()
    assert first == sorted(first, reverse=True)


def test_the_distributed_rival_keeps_as_many_blocks_of_each_segment(rivals):
    per_segment = rivals[2]["distribute"].u[0].view(3, 2).sum(1)
    assert per_segment.max() - per_segment.min() <= 1


def test_the_static_rivals_keep_as_many_blocks_as_blockdrop_does_on_average(rivals):
    keep = round(rivals[2]["blockdrop"].blocks_mean)
    assert 1 < keep < 6
    for name in ("first", "random", "distribute", "best static"):
        assert rivals[2][name].u.sum(1).unique().tolist() == [keep]


def test_each_random_draw_is_one_policy_for_all_images(rivals):
    assert all(len(draw.unique(dim=0)) == 1 for draw in rivals[2]["random"].u.chunk(3))


def test_the_blind_rival_keeps_each_block_as_often_as_blockdrop():
    # Block 0 always, block 1 never; the others at rates far from each other and from a half.
    model = with_bias(pair(segments=(2, 2, 2)), [9.0, -9, 0, 0, 0, 0])
    data = small_data(400)
    rates = torch.tensor([1.0, 0.0, 0.1, 0.9, 0.3, 0.7])
    u = (torch.arange(400)[:, None] % 10 < 10 * rates).float()
    with pytest.MonkeyPatch.context() as patch:
        run = run_policy

        def chosen(model, part, crop, given=None, **options):
            return run(model, part, crop, u if given is None else given, **options)

        patch.setattr(evaluation, "run_policy", chosen)
        blind = evaluate_policies(model, data)["blind"].u
    assert_same(blind.mean(0), rates, 0.06)  # of 1,200 draws: four standard deviations
    assert blind[:, 0].min() == 1 and blind[:, 1].max() == 0


def test_the_blind_rival_does_not_follow_the_image(rivals):
    ours = rivals[2]["blockdrop"].u
    blind = rivals[2]["blind"].u[:60]
    assert (ours != blind).any(1).double().mean() > 0.2


def test_the_best_static_policy_is_searched_on_validation_and_on_nothing_else(monkeypatch, rivals):
    model, data, _ = rivals
    searched = []
    monkeypatch.setattr(
        evaluation, "best_static_policy", lambda *given: searched.append(given) or torch.ones(6)
    )
    evaluate_policies(model, data)
    assert [given[1] is data.val for given in searched] == [True]
    monkeypatch.undo()
    seen = splits_seen(monkeypatch, data, lambda: best_static_policy(model, *searched[0][1:]))
    assert {name for name, _ in seen} == {"val"}


def test_every_row_is_measured_on_the_test_set(monkeypatch, rivals):
    model, data, _ = rivals
    monkeypatch.setattr(evaluation, "best_static_policy", lambda *given: torch.ones(6))
    seen = splits_seen(monkeypatch, data, lambda: evaluate_policies(model, data))
    assert [name for name, _ in seen] == ["test"] * (1 + 4 + 2 * 3)


def test_the_best_static_policy_beats_its_starts_on_validation(rivals):
    model, data, results = rivals

    def val(name):
        return run_policy(model, data.val, 9, results[name].u[0]).accuracy

    assert val("best static") >= max(val("first"), val("distribute"))


def test_a_counted_best_policy_takes_the_place_of_the_searched_one(rivals):
    model, data, results = rivals
    counted = [torch.arange(6).flip(0).lt(keep).float() for keep in range(7)]
    best = evaluate_policies(model, data, counted=counted)["best static"]
    keep = round(results["blockdrop"].blocks_mean)
    assert torch.equal(best.u.unique(dim=0)[0], counted[keep])


def test_only_blockdrop_pays_for_the_policy_network(rivals):
    model, _, results = rivals
    cost = resnet_cost(model.resnet, 9)
    for name, result in results.items():
        extra = policy_cost(model.policy, 9) if name == "blockdrop" else 0
        assert torch.equal(result.flops, cost.of(result.u) + extra)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_random_rivals_depend_on_the_seed_alone(rivals, seed):
    again = evaluate_policies(rivals[0], rivals[1], seed)
    for name in ("full", "blockdrop", "first", "distribute", "best static"):
        assert same(again[name], rivals[2][name])
    for name in ("random", "blind"):
        assert same(again[name], rivals[2][name]) == (seed == 0)


def test_a_policy_that_drops_every_block_is_compared_with_one_block():
    results = evaluate_policies(with_bias(pair(), [-9.0] * 3), small_data(10))
    assert results["blockdrop"].blocks_mean == 0
    assert results["first"].blocks_mean == 1


# ------------------------------------------------------------------------------------ laws: dealt
def test_a_policy_that_is_one_for_all_loses_nothing_when_it_is_dealt_to_other_images():
    model = with_bias(pair(), [9.0, -9, 9])
    data = small_data(30)
    assert dealt_loss(model, data, run_policy(model, data.test, 9)) == (0, 0)


def test_policies_that_only_suit_their_own_image_lose_all_that_others_lose():
    # An image is right under its own policy only: under each other one the prediction is wrong.
    model = pair(segments=(2, 2, 2))
    data = small_data(40)
    own = every_policy(6)[:40].float()
    ours = run_policy(model, data.test, 9, own)
    ours.correct = torch.ones(40, dtype=torch.bool)
    with pytest.MonkeyPatch.context() as patch:

        def run(model, part, crop, u=None, free=None, workers=0):
            return type("Planted", (), {"correct": (u == own).all(1)})

        patch.setattr(evaluation, "run_policy", run)
        loss, error = dealt_loss(model, data, ours)
    assert 0.9 < loss <= 1 and 0 <= error < 0.05


def test_the_dealt_policies_are_the_same_ones_on_the_test_set(monkeypatch):
    model = pair()
    data = small_data(30)
    ours = run_policy(model, data.test, 9)
    seen = splits_seen(monkeypatch, data, lambda: dealt_loss(model, data, ours))
    assert len(seen) == 3
    for name, u in seen:
        assert name == "test" and not torch.equal(u, ours.u)
        assert sorted(u.tolist()) == sorted(ours.u.tolist())
    assert not torch.equal(seen[0][1], seen[1][1])


def test_the_loss_of_dealing_and_its_error_are_those_of_paired_differences():
    model = pair()
    data = small_data(30)
    ours = run_policy(model, data.test, 9)
    differences = []
    with pytest.MonkeyPatch.context() as patch:
        for result in [run_policy(model, data.test, 9, u) for u in noted_deals(patch, model, data)]:
            differences.append(ours.correct.double() - result.correct.double())
    each = torch.stack(differences).mean(0)
    expected = (each.mean().item(), each.std().item() / 30**0.5)
    assert dealt_loss(model, data, ours) == pytest.approx(expected)


def noted_deals(patch, model, data):
    """The policies [N, K] of each deal."""
    ours = run_policy(model, data.test, 9)
    seen = splits_seen(patch, data, lambda: dealt_loss(model, data, ours))
    patch.undo()
    return [u for _, u in seen]


# ------------------------------------------------------------------------------------------ edges
def test_a_single_image_is_a_test_set():
    result = run_policy(pair(), split(1), 9)
    assert (result.blocks_std, result.flops_std, result.distinct_policies) == (0, 0, 1)

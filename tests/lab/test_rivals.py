"""The rivals: what each of them is, what it may look at, and what looking is worth beside them."""

import copy
from unittest.mock import Mock

import pytest
import torch
from helpers import assert_same, every_policy, pair
from runs import same, small_data

from blockdrop_min import resnet_cost
from blockdrop_min.lab import rivals
from blockdrop_min.lab.evaluation import Result, digits, run_policy
from blockdrop_min.lab.rivals import best_static, dealt_loss, measure_rivals, worth_of_looking

STATIC = ("first", "distribute", "best static")


def result(flops, *correct):
    """A `Result` with these mean FLOPs that is right on these images."""
    correct = torch.tensor(correct).bool()
    u = torch.tensor([1.0, 0.0, 1.0]).expand(len(correct), 3)
    return Result(correct, u, torch.full(correct.shape, flops).double(), 100)


@pytest.fixture(scope="module")
def measured():
    """(model, data, BlockDrop's result, its rivals) of a network of six blocks."""
    model = pair(segments=(2, 2, 2))
    data = small_data(60)
    ours = run_policy(model, data.test, 9)
    return model, data, ours, measure_rivals(model, data, ours)


def passes(monkeypatch, data, act):
    """For each pass of run_policy in act(): the name of its split and the policy [K] or [N, K]."""
    seen = []

    def noting(model, split, crop, u=None, free=None, workers=0):
        name = next(name for name in ("train", "val", "test") if split is getattr(data, name))
        seen.append((name, u))
        return run_policy(model, split, crop, u, free, workers)

    monkeypatch.setattr(rivals, "run_policy", noting)
    act()
    return seen


# ------------------------------------------------------------------------------------ not trained
def test_each_rival_has_its_own_policies(measured):
    found = measured[3]
    assert list(found) == ["first", "random", "distribute", "best static", "blind"]
    keep = round(measured[2].blocks_mean)
    assert 1 < keep < 6
    assert found["first"].u[0].tolist() == [1.0] * keep + [0.0] * (6 - keep)
    per_segment = found["distribute"].u[0].view(3, 2).sum(1)
    assert per_segment.max() - per_segment.min() <= 1
    assert all(len(draw.unique(dim=0)) == 1 for draw in found["random"].u.chunk(3))
    for name in (*STATIC, "random"):
        assert found[name].u.sum(1).unique().tolist() == [keep]


@pytest.mark.parametrize(("mean", "keep"), [(4.6, 5), (4.4, 4), (0.0, 1), (0.4, 1)])
def test_rivals_have_the_number_of_blocks_nearest_to_the_mean_and_one_at_least(
    measured, monkeypatch, mean, keep
):
    model, data, ours, _ = measured
    monkeypatch.setattr(ours, "blocks_mean", mean)
    assert measure_rivals(model, data, ours)["first"].blocks_mean == keep


def test_every_row_is_its_policies_run_on_the_test_set_without_the_policy_network(measured):
    model, data, _, found = measured
    cost = resnet_cost(model.resnet, 9)
    for name, rival in found.items():
        draws = rival.u.chunk(3 if name in ("random", "blind") else 1)
        assert same(rival, rivals.pooled([run_policy(model, data.test, 9, u) for u in draws]))
        assert torch.equal(rival.flops, cost.of(rival.u))


def test_draws_are_pooled_over_all_their_images():
    together = rivals.pooled([result(50.0, 1, 0, 1, 1), result(25.0, 0)])
    assert (together.accuracy, together.flops_mean, together.flops_full) == (3 / 5, 45, 100)


def test_the_blind_rival_keeps_each_block_as_often_as_blockdrop_but_not_for_its_images():
    # Block 0 always, block 1 never; the others at rates far from each other and from a half.
    rates = torch.tensor([1.0, 0.0, 0.1, 0.9, 0.3, 0.7])
    u = (torch.arange(400)[:, None] % 10 < 10 * rates).float()
    model, data = pair(segments=(2, 2, 2)), small_data(400)
    blind = measure_rivals(model, data, run_policy(model, data.test, 9, u))["blind"].u
    assert_same(blind.mean(0), rates, 0.06)  # of 1,200 draws: four standard deviations
    assert blind[:, 0].min() == 1 and blind[:, 1].max() == 0
    assert (u != blind[:400]).any(1).double().mean() > 0.2


@pytest.mark.parametrize("seed", [0, 1])
def test_the_random_rivals_depend_on_the_seed_alone(measured, seed):
    model, data, ours, found = measured
    again = measure_rivals(model, data, ours, seed)
    for name in found:
        assert same(again[name], found[name]) == (name in STATIC or seed == 0)


# --------------------------------------------------------------------------------- the best static
@pytest.mark.parametrize("keep", range(7))
def test_of_few_blocks_the_best_policy_on_validation_is_found(measured, keep):
    model, data, _, _ = measured
    val = {tuple(u): run_policy(model, data.val, 9, torch.tensor(u)).accuracy
           for u in every_policy(6).float().tolist() if sum(u) == keep}  # fmt: skip
    best = best_static(model, data, keep)
    assert best.sum() == keep and val[tuple(best.tolist())] == max(val.values())


def test_the_best_of_some_images_are_compared_on_all(measured, monkeypatch):
    model, data, _, _ = measured
    monkeypatch.setattr(rivals, "SOME", 5)
    monkeypatch.setattr(rivals, "FINALISTS", 4)
    seen = passes(monkeypatch, data, lambda: best_static(model, data, 3))
    assert [name for name, _ in seen] == ["val"] * 4  # the whole split, and no other
    accuracy = [run_policy(model, data.val, 9, u).accuracy for _, u in seen]
    chosen = run_policy(model, data.val, 9, best_static(model, data, 3)).accuracy
    assert chosen == max(accuracy)


def planted(monkeypatch, value):
    """run_policy gives policies the accuracy value(u). Returns the list of those it was given."""
    given = []
    monkeypatch.setattr(rivals, "COUNTED", 0)

    def run(model, part, crop, u, workers):
        given.append(u.tolist())
        return type("Planted", (), {"accuracy": value(u)})

    monkeypatch.setattr(rivals, "run_policy", run)
    return given


def search(keep, start=()):
    return best_static(pair(segments=(2, 2, 2)), small_data(5), keep, start)


def closeness(best):
    return lambda u: -(u - torch.tensor(best)).abs().sum().item()


def test_a_search_comes_near_the_planted_best_policy_and_keeps_the_number_of_blocks(monkeypatch):
    for best in ([0.0, 0, 0, 1, 1, 1], [1.0, 1, 0, 1, 0, 0], [0.0, 1, 0, 1, 0, 1]):
        given = planted(monkeypatch, closeness(best))
        assert closeness(best)(search(3)) >= -2
        assert {sum(u) for u in given} == {3} and len(given) == 2 + rivals.SEARCH


def test_a_search_starts_from_the_best_of_its_starts_and_changes_one_block(monkeypatch):
    start = torch.tensor([0.0, 0, 1, 0, 1, 1])
    given = planted(monkeypatch, closeness(start.tolist()))
    assert torch.equal(search(3, [start]), start)
    for u in given[3:]:
        assert (torch.tensor(u) - start).abs().sum() == 2


def test_the_search_starts_from_the_blocks_that_blockdrop_keeps_most(measured, monkeypatch):
    model, data, ours, _ = measured
    start = torch.tensor([1.0, 0, 1, 0, 0, 0])
    monkeypatch.setattr(rivals, "best_static", search := Mock(return_value=start))
    measure_rivals(model, data, ours)
    [(_, _, keep, [often], _)] = [call.args for call in search.call_args_list]
    rates = ours.u.mean(0)
    assert often.sum() == keep and rates[often == 1].min() >= rates[often == 0].max()


@pytest.mark.parametrize("keep", [0, 6])
def test_there_is_nothing_to_change_if_all_blocks_are_kept_or_none(monkeypatch, keep):
    planted(monkeypatch, lambda u: 1.0)
    assert search(keep).tolist() == [keep / 6] * 6


# ------------------------------------------------------------------------------- to train as long
@pytest.mark.parametrize("kept", [0, 1, 2, 4, 6])
def test_the_rivals_to_train_lie_on_both_sides_of_blockdrops_flops(measured, tmp_path, kept):
    model, data, _, _ = measured
    cost = resnet_cost(model.resnet, 9)
    pretrained = copy.deepcopy(model)
    pretrained.resnet = pair(segments=(2, 2, 2), seed=5).resnet  # its best policies are others
    torch.save(pretrained.resnet.state_dict(), tmp_path / "resnet.pt")
    model = copy.deepcopy(model)
    with torch.no_grad():  # so many blocks, the last ones, on every image
        model.policy.logit.weight.zero_()
        model.policy.logit.bias.copy_(9 * (torch.arange(6) >= 6 - kept) - 4.5)
    flops = run_policy(model, data.val, 9).flops_mean
    lows, highs, *heuristics = rivals.static_rivals(model, data, tmp_path / "resnet.pt")
    count = lows[0].count("1")
    assert 1 <= count == highs[0].count("1") - 1
    u = torch.tensor([[float(kept) for kept in policy] for policy in (lows[0], *highs)])
    cheap, *dear = cost.of(u).tolist()
    assert (cheap <= flops or count == 1) and (min(dear) >= flops or "1" * 6 in highs)
    assert lows[0] == digits(best_static(pretrained, data, count))
    assert heuristics == [[f"{kind}:{count}"] for kind in ("first", "random", "distribute")]


# ------------------------------------------------------------------------------------------ dealt
@pytest.fixture
def dealing(monkeypatch):
    """dealing(seed): the loss and its error of 40 different policies, and the deals [3, 40].

    An image is right under its own policy only, which is its number in binary.
    """
    own = every_policy(6)[:40].float()
    ours = Result(torch.ones(40).bool(), own, torch.ones(40).double(), 100)

    def act(seed):
        dealt = []

        def run(model, part, crop, u=None, free=None, workers=0):
            dealt.append((u.long() << torch.arange(6)).sum(1))
            return type("Planted", (), {"correct": (u == own).all(1)})

        monkeypatch.setattr(rivals, "run_policy", run)
        return dealt_loss(None, small_data(40), ours, seed), torch.stack(dealt)

    return act


def test_policies_that_only_suit_their_own_image_lose_all_that_others_lose(dealing):
    loss, error = dealing(0)[0]
    assert 0.9 < loss <= 1 and 0 <= error < 0.05


def test_the_dealt_policies_are_the_same_ones_on_the_test_set(measured, monkeypatch):
    model, data, ours, _ = measured
    seen = passes(monkeypatch, data, lambda: dealt_loss(model, data, ours))
    assert len(seen) == 3
    for name, u in seen:
        assert name == "test" and not torch.equal(u, ours.u)
        assert sorted(u.tolist()) == sorted(ours.u.tolist())
    assert not torch.equal(seen[0][1], seen[1][1])


def test_each_deal_is_a_random_permutation_that_follows_the_seed(dealing):
    first, again, other = (dealing(seed)[1] for seed in (1, 1, 2))
    assert first.equal(again) and not first.equal(other)
    for deal in (*first, *other):
        assert deal.sort().values.equal(torch.arange(40))
        assert len(((deal - torch.arange(40)) % 40).unique()) > 10, "a shift is no random deal"


def test_the_loss_of_dealing_and_its_error_are_those_of_paired_differences(measured, monkeypatch):
    model, data, ours, _ = measured
    seen = passes(monkeypatch, data, lambda: dealt_loss(model, data, ours))
    right = [run_policy(model, data.test, 9, u).correct.double() for _, u in seen]
    each = ours.correct.double() - torch.stack(right).mean(0)
    expected = (each.mean().item(), each.std().item() / 60**0.5)
    assert dealt_loss(model, data, ours) == pytest.approx(expected)


def test_a_policy_that_is_one_for_all_loses_nothing_when_it_is_dealt(measured):
    model, data, _, found = measured
    assert dealt_loss(model, data, found["first"]) == (0, 0)


# -------------------------------------------------------------------------------- worth of looking
CHEAP, DEAR = result(20.0, 1, 0, 0, 1), result(40.0, 1, 1, 0, 1)


def test_between_two_rivals_the_comparison_is_with_the_line_through_them():
    # At 25 the line is right 1, 1/4, 0, 1 times: less than 1, 1, 0, 1 by 0, 3/4, 0, 0.
    ours = result(25.0, 1, 1, 0, 1)
    error = (3 * (3 / 16) ** 2 + (9 / 16) ** 2) ** 0.5 / 3**0.5 / 2
    assert worth_of_looking(ours, [DEAR, CHEAP]) == pytest.approx((3 / 16, error))
    beyond = [result(5.0, 0, 0, 0, 0), result(80.0, 1, 1, 1, 1)]
    assert worth_of_looking(ours, [*beyond, CHEAP, DEAR]) == pytest.approx((3 / 16, error))


def test_of_several_rivals_the_best_line_counts_however_near_the_others_are():
    ours = result(30.0, 1, 1, 1, 1)
    near = [result(28.0, 0, 0, 0, 1), result(32.0, 0, 0, 0, 1)]
    expected = worth_of_looking(ours, [CHEAP, DEAR])
    assert expected[0] == pytest.approx(3 / 8)
    assert worth_of_looking(ours, [*near, CHEAP, DEAR]) == expected
    better = result(21.0, 1, 1, 0, 1)  # cheaper, and as good as the dearest
    assert worth_of_looking(ours, [better, CHEAP, DEAR])[0] == 1 / 4


@pytest.mark.parametrize(("flops", "rival"), [(10.0, CHEAP), (20.0, CHEAP), (40.0, DEAR)])
def test_below_all_rivals_or_at_the_flops_of_one_the_comparison_is_with_it(flops, rival):
    worth, _ = worth_of_looking(result(flops, 1, 1, 1, 1), [CHEAP, DEAR])
    assert worth == 1 - rival.accuracy


@pytest.mark.parametrize("fair", [[], [CHEAP, DEAR]])
def test_nothing_is_claimed_where_no_rival_costs_as_much(fair):
    assert worth_of_looking(result(70.0, 1, 1, 1, 1), fair) is None


def test_above_the_full_network_trained_as_long_the_comparison_is_with_it():
    full = result(40.0, 1, 1, 0, 1)
    full.u = torch.ones(4, 3)
    assert worth_of_looking(result(41.0, 1, 1, 1, 1), [CHEAP, full])[0] == 1 - full.accuracy


def test_the_error_is_that_of_the_same_images():
    # Right and wrong on the same images: the difference is known without error.
    assert worth_of_looking(CHEAP, [CHEAP]) == (0, 0)
    assert worth_of_looking(result(20.0, 0, 1, 1, 0), [CHEAP])[1] > 0.5

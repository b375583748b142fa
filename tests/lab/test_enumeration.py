"""All policies, counted: against running each alone, and the choices from them by hand."""

import json

import pytest
import torch
from helpers import every_policy, pair, seeds, small_policy_net, small_resnet
from hypothesis import given
from runs import small_data, split

from blockdrop_min import BlockDrop, policy_cost, resnet, resnet_cost, reward
from blockdrop_min.lab import enumeration
from blockdrop_min.lab.enumeration import (
    NEEDS,
    all_policies,
    best_by_group,
    count,
    cross_fitted,
    enumerate_policies,
    put_into_bins,
)
from blockdrop_min.lab.evaluation import run_policy

BOUNDS = ["by true class", "each image's best"]


def exact_pair(segments=(1, 1, 1), family="cifar", num_classes=5):
    """A `BlockDrop` in float64, with a classifier in its policy network."""
    net = small_resnet(segments, (3, 4, 5)[: len(segments)], family=family)
    policy = small_policy_net(net.num_blocks, family, num_classes=num_classes)
    model = BlockDrop(net, policy, mean=(0.5,) * 3, std=(0.3,) * 3).double().eval()
    model.prepare = lambda x: (x.double() / 255 - model.mean) / model.std
    return model


def one_hot(*columns):
    """[N, P] bool: for each image the policies under which it is right."""
    return torch.tensor(columns).bool()


# ---------------------------------------------------------------------------------------- by hand
def test_all_policies_of_two_blocks_count_from_none_to_all():
    assert all_policies(2).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


def test_the_best_policy_of_a_group_has_the_highest_mean_reward():
    # K = 2, gamma 1. Right under {none, one block, both}: rewards 1, 3/4, 0; wrong -1.
    u = torch.tensor([[0.0, 0], [0, 1], [1, 1]])
    correct = one_hot([1, 1, 1], [0, 1, 1], [0, 0, 1], [0, 0, 1])
    # Images 0, 1: (1 - 1) / 2, (3/4 + 3/4) / 2, 0. Images 2, 3: -1, -1, 0.
    groups = torch.tensor([0, 0, 1, 1])
    chosen = best_by_group(correct, u, 1.0, groups, torch.tensor([1, 0]))
    assert chosen.tolist() == [2, 1]


@pytest.mark.parametrize(("gamma", "best"), [(0.0, 0), (1.0, 1), (4.0, 2)])
def test_a_larger_penalty_chooses_more_blocks(gamma, best):
    # Of five images none, one and both blocks are right on 3, 4 and 5. Sums of rewards:
    # 3 - 2 gamma, 4 x 3/4 - gamma, 0.
    u = torch.tensor([[0.0, 0], [0, 1], [1, 1]])
    correct = one_hot([1, 1, 1], [1, 1, 1], [1, 1, 1], [0, 1, 1], [0, 0, 1])
    everyone = torch.zeros(5, dtype=torch.int64)
    assert best_by_group(correct, u, gamma, everyone, everyone[:1]).tolist() == [best]


def test_of_equal_policies_the_first_is_chosen():
    u = torch.tensor([[0.0, 1], [1, 0]])
    everyone = torch.zeros(3, dtype=torch.int64)
    correct = one_hot([1, 0], [0, 1], [1, 1])
    assert best_by_group(correct, u, 1.0, everyone, everyone).tolist() == [0, 0, 0]


def test_a_group_that_was_never_seen_gets_the_best_policy_of_all_images():
    u = torch.tensor([[0.0, 0], [0, 1], [1, 1]])
    correct = one_hot([0, 1, 1], [0, 1, 1], [1, 0, 1])
    groups = torch.tensor([0, 0, 2])
    # Of all images: 1 - 2, 3/2 - 1, 0. So the second.
    assert best_by_group(correct, u, 1.0, groups, torch.tensor([1, 2, 4])).tolist() == [1, 0, 1]


def test_each_half_is_rewarded_under_the_choice_of_the_other():
    # Even images are right without blocks, odd ones only with both: each half gets what fails it.
    u = torch.tensor([[0.0, 0], [1, 1]])
    correct = one_hot([1, 0], [0, 1], [1, 0], [0, 1])
    everyone = torch.zeros(4, dtype=torch.int64)
    assert cross_fitted(correct, u, 2.0, everyone) == -2


def test_a_choice_that_carries_over_keeps_its_reward():
    u = torch.tensor([[0.0, 0], [1, 1]])
    correct = one_hot([1, 0], [1, 0], [0, 1], [0, 1])
    assert cross_fitted(correct, u, 2.0, torch.tensor([0, 0, 1, 1])) == 1 / 2


def test_each_half_of_the_images_gets_the_choice_of_the_other():
    # Images 0 and 2 are right under both policies, 1 and 3 with all blocks alone: what 0 and 2
    # choose earns 1 and 3 -2 each, what 1 and 3 choose earns 0 and 2 nothing.
    u = torch.tensor([[0.0, 0], [1, 1]])
    correct = one_hot([1, 1], [0, 1], [1, 1], [0, 1])
    assert cross_fitted(correct, u, 2.0, torch.zeros(4, dtype=torch.int64)) == -1


def test_the_number_of_bins_is_the_one_that_serves_best():
    # Right without blocks where the full network is surer than its median, with them elsewhere.
    confidence = torch.linspace(0, 1, 80).view(2, 40).t().reshape(-1)  # halves alternate
    sure = confidence > confidence.median()
    split = {"by confidence": confidence, "correct": torch.stack([sure, ~sure], 1)}
    other = {"by confidence": torch.tensor([0.1, 0.9])}
    u = torch.tensor([[0.0, 0], [1, 0]])
    assert put_into_bins(split, other, u, 2.0) in (2, 8)  # 8 bins have the median as an edge, too
    bins = split["by confidence"]
    assert bins[sure].min() > bins[~sure].max() or bins[sure].max() < bins[~sure].min()
    assert other["by confidence"].tolist() == [bins.min(), bins.max()]


# -------------------------------------------------------------------------------------- two roads
@pytest.mark.parametrize("family", ["cifar", "imagenet"])
@pytest.mark.parametrize("segments", [(1, 1, 1), (2, 1), (1, 2, 2)])
def test_counting_equals_running_each_policy_alone(segments, family):
    model = exact_pair(segments, family)
    part = split(23)
    found = count(model, part, 9)["correct"]
    for p, u in enumerate(all_policies(sum(segments))):
        assert torch.equal(found[:, p], run_policy(model, part, 9, u).correct), u.tolist()
    assert len(found.unique(dim=1).t()) > 1


@given(seeds)
def test_the_order_is_that_of_the_policies(seed):
    model = exact_pair((1, 2))
    part = split(5, seed)
    correct = count(model, part, 9)["correct"]
    for p in (0, 3, 7):
        logits = model.resnet(model.prepare(part.images), all_policies(3)[p])
        assert torch.equal(correct[:, p], logits.argmax(1) == part.labels)


def test_more_images_than_fit_a_batch_are_counted_alike(monkeypatch):
    model = exact_pair()
    whole = count(model, split(23), 9)
    monkeypatch.setattr(enumeration, "BATCH", 5)
    parts = count(model, split(23), 9)
    for name in ("correct", "by true class", "by predicted class", "by glimpsed class"):
        assert torch.equal(whole[name], parts[name])


def test_what_the_full_network_and_the_policy_network_see_is_theirs():
    model = exact_pair()
    part = split(12)
    found = count(model, part, 9)
    x = model.prepare(part.images)
    confidence, predicted = model.resnet(x).softmax(1).max(1)
    assert torch.equal(found["by predicted class"], predicted)
    torch.testing.assert_close(found["by confidence"], confidence)
    assert torch.equal(found["by glimpsed class"], model.policy.classify(x).argmax(1))
    assert torch.equal(found["by true class"], part.labels)


def test_each_block_runs_once_for_each_policy_of_those_before_it():
    model = exact_pair((1, 1, 1))
    calls = [0, 0, 0]
    for k, block in enumerate(model.resnet.blocks):

        def counting(module, x, output, k=k):
            calls[k] += 1

        block.conv1.register_forward_hook(counting)
    count(model, split(4), 9)
    assert calls == [1, 2, 4]


# ------------------------------------------------------------------------------------------- laws
@pytest.fixture(scope="module")
def counted():
    """(model, data, what is found with gamma 1)."""
    torch.set_num_threads(1)
    model = exact_pair((1, 2, 1))
    with torch.no_grad():  # a policy that differs by image, and not the best single one
        model.policy.logit.weight.mul_(30)
    data = small_data(80)
    return model, data, enumerate_policies(model, data, 1.0)


def alone(model, part, gamma):
    """Reward [N, P] and correctness [N, P] of each policy of `every_policy`, run alone."""
    results = [run_policy(model, part, 9, u.float()) for u in every_policy(4)]
    rewards = [reward(result.u, result.correct, gamma) for result in results]
    return torch.stack(rewards, 1), torch.stack([result.correct for result in results], 1)


def test_it_is_json(counted):
    assert json.loads(json.dumps(counted[2]))["gamma"] == 1.0


def test_the_one_policy_for_all_is_the_best_on_validation_measured_on_test(counted):
    model, data, found = counted
    best = alone(model, data.val, 1.0)[0].mean(0).argmax()
    expected = alone(model, data.test, 1.0)[0][:, best].mean().item()
    assert found["best_static_reward"] == pytest.approx(expected)


@pytest.mark.parametrize("keep", range(5))
def test_the_frontier_holds_the_best_policy_of_each_number_of_blocks(counted, keep):
    model, data, found = counted
    digits = list(found["frontier"])[keep]
    assert digits.count("1") == keep
    val = alone(model, data.val, 1.0)[1].double().mean(0)
    of_size = every_policy(4).sum(1) == keep
    index = (every_policy(4) == torch.tensor([float(u) for u in digits])).all(1)
    assert val[index].item() == val[of_size].max().item()
    test = alone(model, data.test, 1.0)[1].double().mean(0)
    assert found["frontier"][digits]["accuracy"] == pytest.approx(test[index].item())


def test_of_equally_accurate_policies_the_frontier_holds_the_cheapest():
    model = exact_pair((1, 2, 1))
    for block in model.resnet.blocks:  # every policy predicts alike
        block.bn2.weight.data.zero_()
        block.bn2.bias.data.zero_()
    found = enumerate_policies(model, small_data(20), 1.0)
    blocks = torch.tensor(resnet_cost(model.resnet, 9).blocks)
    for keep, digits in enumerate(found["frontier"]):
        kept = sum(int(blocks[k]) for k in range(4) if digits[k] == "1")
        assert kept == int(blocks.sort().values[:keep].sum())


def test_the_policy_for_each_true_class_is_the_best_for_it_on_validation(counted):
    model, data, found = counted
    val, test = alone(model, data.val, 1.0)[0], alone(model, data.test, 1.0)[0]
    total = 0
    for c in range(5):
        best = val[data.val.labels == c].mean(0).argmax()
        total += test[data.test.labels == c, best].sum().item()
    assert found["policies"]["by true class"]["reward"] == pytest.approx(total / 80)


def test_each_images_best_is_the_highest_reward_of_all_its_policies(counted):
    model, data, found = counted
    expected = alone(model, data.test, 1.0)[0].max(1).values.mean().item()
    assert found["policies"]["each image's best"]["reward"] == pytest.approx(expected)


def test_the_learned_row_is_the_models_own_policy_on_the_test_set(counted):
    model, data, found = counted
    result = run_policy(model, data.test, 9)
    row = found["policies"]["learned"]
    assert row["accuracy"] == result.accuracy and row["flops"] == result.flops_mean
    expected = reward(result.u, result.correct, 1.0).mean().item()
    assert found["learned_reward"] == row["reward"] == pytest.approx(expected)


def test_regret_is_the_paired_difference_of_rewards(counted):
    model, data, found = counted
    best = alone(model, data.val, 1.0)[0].mean(0).argmax()
    result = run_policy(model, data.test, 9)
    learned = reward(result.u, result.correct, 1.0)
    difference = alone(model, data.test, 1.0)[0][:, best] - learned
    expected = (difference.mean().item(), difference.std().item() / 80**0.5)
    assert abs(expected[0]) > 0.01
    assert found["regret_static"] == pytest.approx(expected, abs=1e-6)


def test_the_regrets_differ_by_the_gain_of_what_is_informed(counted):
    found = counted[2]
    gain = found["regret_informed"][0] - found["regret_static"][0]
    assert found["gain_informed"][0] == pytest.approx(gain, abs=1e-6)
    informed = found["policies"][found["informed"]]["reward"]
    assert found["informed_reward"] == informed
    assert gain == pytest.approx(informed - found["best_static_reward"], abs=1e-6)


def test_a_bound_is_never_what_is_called_informed(counted):
    assert NEEDS[counted[2]["informed"]] in ("full net", "policy net")


def test_all_rows_are_there_and_say_what_they_need(counted):
    rows = counted[2]["policies"]
    assert list(rows) == list(NEEDS)
    assert {name: row["needs"] for name, row in rows.items()} == NEEDS
    assert [name for name in rows if rows[name]["needs"] == "label"] == BOUNDS


def test_a_look_is_paid_for(counted):
    model, _, found = counted
    cost = resnet_cost(model.resnet, 9)
    looks = {"full net": cost.full, "policy net": policy_cost(model.policy, 9)}
    for row in found["policies"].values():
        look = looks.get(row["needs"], 0)
        assert look + cost.fixed <= row["flops"] <= look + cost.full
    assert found["policies"]["one for all"]["flops"] <= cost.full


def test_no_choice_but_the_bounds_sees_the_labels_of_the_test_set():
    model = exact_pair((1, 2, 1))
    data = small_data(80)
    found = enumerate_policies(model, data, 1.0)
    data.test.labels.copy_((data.test.labels + 1) % 5)
    other = enumerate_policies(model, data, 1.0)
    for name in NEEDS:
        alike = found["policies"][name]["blocks"] == other["policies"][name]["blocks"]
        assert alike or name in BOUNDS
    assert list(found["frontier"]) == list(other["frontier"])
    assert found["informed"] == other["informed"]


def test_the_reward_of_every_choice_lies_between_the_worst_and_each_images_best(counted):
    model, data, found = counted
    worst = alone(model, data.test, 1.0)[0].min(1).values.mean().item()
    best = found["policies"]["each image's best"]["reward"]
    assert all(worst <= row["reward"] <= best for row in found["policies"].values())


# ------------------------------------------------------------------------------------------ edges
@pytest.mark.parametrize("learned", [True, False])
def test_a_model_without_a_learned_policy_has_no_regret(learned):
    found = enumerate_policies(exact_pair(), small_data(20), 1.0, learned)
    keys = {"learned_reward", "regret_static", "regret_informed"}
    assert (keys <= set(found)) == (not keys.isdisjoint(found)) == learned


def test_a_policy_network_without_a_classifier_glimpses_no_class():
    found = enumerate_policies(pair(), small_data(20), 1.0)
    assert "by glimpsed class" not in found["policies"]
    assert NEEDS[found["informed"]] == "full net"


def test_a_fixed_policy_is_counted_beside_the_others():
    found = enumerate_policies(pair(fixed=[1.0, 0, 1]), small_data(20), 1.0, learned=False)
    assert len(found["frontier"]) == 4


def test_more_blocks_than_can_be_counted_are_refused():
    model = BlockDrop(resnet(32), small_policy_net(15))
    with pytest.raises(ValueError, match=r"K = 15.*at most 12"):
        count(model, split(2), 9)


def test_no_gradient_is_kept():
    found = count(exact_pair(), split(3), 9)
    assert not any(value.requires_grad for value in found.values())

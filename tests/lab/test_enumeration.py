"""All policies, counted: against running each alone, and the choices from them by hand."""

import json

import pytest
import torch
from helpers import assert_same, every_policy, pair, rng, small_policy_net, small_resnet
from runs import small_data, split

from blockdrop_min import BlockDrop, resnet_cost, reward
from blockdrop_min.lab import enumeration
from blockdrop_min.lab.enumeration import best_by_group, choose, count, enumerate_policies
from blockdrop_min.lab.evaluation import digits, run_policy

NO_ONE_OR_BOTH = torch.tensor([[0.0, 0], [0, 1], [1, 1]])  # policies of two blocks


def exact_pair(segments=(1, 1, 1), family="cifar"):
    """A `BlockDrop` in float64."""
    net = small_resnet(segments, (3, 4, 5)[: len(segments)], family=family)
    policy = small_policy_net(net.num_blocks, family)
    return BlockDrop(net, policy, mean=(0.5,) * 3, std=(0.3,) * 3).double().eval()


def right_under(*rows):
    """[N, P] bool: for each image the policies under which it is right."""
    return torch.tensor(rows).bool()


# ---------------------------------------------------------------------------------------- by hand
def test_all_policies_of_two_blocks_count_from_none_to_all():
    assert enumeration.all_policies(2).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert enumeration.all_policies(2, keep=1).tolist() == [[0, 1], [1, 0]]


def test_the_best_policy_of_a_group_has_the_highest_mean_reward():
    # K = 2, gamma 1. Right under {none, one block, both}: rewards 1, 3/4, 0; wrong -1.
    correct = right_under([1, 1, 1], [0, 1, 1], [0, 0, 1], [0, 0, 1])
    # Images 0, 1: (1 - 1) / 2, (3/4 + 3/4) / 2, 0. Images 2, 3: -1, -1, 0.
    # Of all images: (1 - 3) / 4, (3/4 + 3/4 - 2) / 4, 0: what groups without images get.
    best = best_by_group(correct, NO_ONE_OR_BOTH, 1.0, torch.tensor([0, 0, 1, 1]))
    assert best.tolist() == [1, 2] + [2] * (enumeration.BINS - 2)
    first = best_by_group(correct[:, :1].expand(4, 3), torch.ones(3, 2), 1.0, torch.zeros(4).long())
    assert first[0] == 0, "of equal policies the first"


@pytest.mark.parametrize(("gamma", "best"), [(0.0, 0), (1.0, 1), (4.0, 2)])
def test_a_larger_penalty_chooses_more_blocks(gamma, best):
    # Of five images none, one and both blocks are right on 3, 4 and 5. Sums of rewards:
    # 3 - 2 gamma, 4 x 3/4 - gamma, 0.
    correct = right_under([1, 1, 1], [1, 1, 1], [1, 1, 1], [0, 1, 1], [0, 0, 1])
    assert best_by_group(correct, NO_ONE_OR_BOTH, gamma, torch.zeros(5).long())[0] == best


def test_images_of_like_confidence_get_what_is_best_for_theirs():
    # On validation the surest fifth is right without blocks, the rest only with both.
    confidence = torch.linspace(0, 1, 50)
    sure = confidence > confidence.quantile(0.8)
    val = torch.stack([sure, torch.zeros(50), torch.ones(50)], 1).bool(), confidence
    test = torch.zeros(3, 3).bool(), torch.tensor([0.1, 0.7, 0.99])
    chosen = choose(val, test, NO_ONE_OR_BOTH, 2.0)
    assert chosen["by confidence"].tolist() == [2, 2, 0]
    assert chosen["one for all"].tolist() == [2, 2, 2]


def test_no_test_image_moves_the_choice_of_another():
    g = rng(0)
    sizes = (60, 40)
    val, test = ((torch.rand(n, 3, generator=g) < 0.6, torch.rand(n, generator=g)) for n in sizes)
    whole = choose(val, test, NO_ONE_OR_BOTH, 1.0)
    assert len(whole["by confidence"].unique()) > 1
    for i in range(40):
        alone = choose(val, (test[0][i : i + 1], test[1][i : i + 1]), NO_ONE_OR_BOTH, 1.0)
        assert {name: index[i] for name, index in whole.items()} == alone


# -------------------------------------------------------------------------------------- two roads
@pytest.mark.parametrize("family", ["cifar", "imagenet"])
@pytest.mark.parametrize("segments", [(1, 1, 1), (2, 1), (1, 2, 2)])
def test_counting_equals_running_each_policy_alone(segments, family):
    model, part = exact_pair(segments, family), split(23)
    found, confidence = count(model, part, 9)
    for p, u in enumerate(enumeration.all_policies(sum(segments))):
        assert torch.equal(found[:, p], run_policy(model, part, 9, u).correct), u.tolist()
    assert len(found.unique(dim=1).t()) > 1
    assert_same(confidence, model.resnet(model.prepare(part.images)).softmax(1).amax(1))


def test_more_images_than_fit_a_batch_are_counted_alike(monkeypatch):
    model = exact_pair()
    whole = count(model, split(23), 9)
    monkeypatch.setattr(enumeration, "BATCH", 5)
    assert_same(count(model, split(23), 9), whole)


@pytest.mark.parametrize(("keep", "expected"), [(None, [1, 2, 4]), (1, [1, 1, 1]), (2, [1, 2, 2])])
def test_policies_that_begin_alike_share_their_beginning(keep, expected):
    model = exact_pair((1, 1, 1))
    calls = [0, 0, 0]
    for k, block in enumerate(model.resnet.blocks):
        block.conv1.register_forward_hook(lambda *_, k=k: calls.__setitem__(k, calls[k] + 1))
    count(model, split(4), 9, keep=keep)
    assert calls == expected


# ------------------------------------------------------------------------------------------- laws
@pytest.fixture(scope="module")
def counted():
    """(model, data, the learned result, what is found with gamma 1)."""
    model = exact_pair((1, 2, 1))
    with torch.no_grad():  # a policy that differs by image, and not the best single one
        model.policy.logit.weight.mul_(30)
    data = small_data(80)
    learned = run_policy(model, data.test, 9)
    return model, data, learned, enumerate_policies(model, data, 1.0, learned)


def alone(model, part, gamma):
    """Reward [N, P] and correctness [N, P] of each policy of `every_policy`, run alone."""
    results = [run_policy(model, part, 9, u.float()) for u in every_policy(4)]
    rewards = [reward(result.u, result.correct, gamma) for result in results]
    return torch.stack(rewards, 1), torch.stack([result.correct for result in results], 1)


def test_all_rows_are_there_say_what_they_need_and_are_json(counted):
    found = json.loads(json.dumps(counted[-1]))
    assert {name: row["needs"] for name, row in found["policies"].items()} == enumeration.NEEDS
    assert list(found["policies"]) == list(enumeration.NEEDS) and found["gamma"] == 1.0
    assert {row["needs"] for row in found["frontier"].values()} == {"nothing"}


def test_the_one_policy_for_all_is_the_best_on_validation_measured_on_test(counted):
    model, data, _, found = counted
    best = alone(model, data.val, 1.0)[0].mean(0).argmax()
    expected = alone(model, data.test, 1.0)[0][:, best].mean().item()
    row = found["policies"]["one for all"]
    assert row["reward"][0] == found["best_static_reward"] == pytest.approx(expected)
    assert row["policy"] == digits(every_policy(4)[best])


@pytest.mark.parametrize("keep", range(5))
def test_the_frontier_holds_the_best_policy_of_each_number_of_blocks(counted, keep):
    model, data, _, found = counted
    name = list(found["frontier"])[keep]
    val, test = (alone(model, part, 1.0)[1].double().mean(0) for part in (data.val, data.test))
    index = [digits(u) for u in every_policy(4)].index(name)
    assert name.count("1") == keep
    assert val[index] == val[every_policy(4).sum(1) == keep].max()
    assert found["frontier"][name]["accuracy"] == pytest.approx(test[index].item())


def test_each_images_best_is_the_highest_reward_of_all_its_policies_and_bounds_all(counted):
    model, data, _, found = counted
    expected = alone(model, data.test, 1.0)[0].max(1).values.mean().item()
    assert found["policies"]["each image's best"]["reward"][0] == pytest.approx(expected)
    assert all(row["reward"][0] <= expected + 1e-6 for row in found["policies"].values())


def test_the_learned_row_is_the_models_own_policy_on_the_test_set(counted):
    learned, found = counted[2:]
    row = found["policies"]["learned"]
    assert row["accuracy"] == learned.accuracy and row["flops"] == learned.flops_mean
    expected = reward(learned.u, learned.correct, 1.0).mean().item()
    assert found["learned_reward"] == row["reward"][0] == pytest.approx(expected)
    for name, key in (("one for all", "best_static"), ("by confidence", "informed")):
        assert found[f"{key}_reward"] == found["policies"][name]["reward"][0]


def test_a_look_by_the_full_network_is_paid_for(counted):
    model, _, _, found = counted
    cost = resnet_cost(model.resnet, 9)
    rows = found["policies"]
    assert cost.full + cost.fixed <= rows["by confidence"]["flops"] <= 2 * cost.full
    for name in ("one for all", "each image's best"):
        assert cost.fixed <= rows[name]["flops"] <= cost.full


def test_no_choice_but_the_bound_sees_the_labels_of_the_test_set():
    model, data = exact_pair((1, 2, 1)), small_data(80)
    found = enumerate_policies(model, data, 1.0)
    data.test.labels.copy_((data.test.labels + 1) % 5)
    other = enumerate_policies(model, data, 1.0)
    rows = found["policies"].items()
    differ = [n for n, row in rows if row["blocks"] != other["policies"][n]["blocks"]]
    assert differ == ["each image's best"] and [*found["frontier"]] == [*other["frontier"]]


# ------------------------------------------------------------------------------------------ edges
def test_a_fixed_policy_is_no_row():
    found = enumerate_policies(pair(fixed=[1.0, 0, 1]), small_data(20), 1.0)
    assert "learned_reward" not in found
    assert "learned" not in found["policies"] and len(found["frontier"]) == 4


def test_twelve_blocks_can_be_counted_and_more_are_refused():
    assert count(exact_pair((12,)), split(1), 9)[0].shape == (1, 4096)
    with pytest.raises(ValueError, match=r"K = 13.*at most 12"):
        count(exact_pair((13,)), split(1), 9)

"""BlockDrop, the pair of networks, and FixedPolicy, which stands in for a policy network."""

from itertools import pairwise

import pytest
import torch
from helpers import assert_same, cases, images, policies, rng, seeds, small_policy_net, small_resnet
from hypothesis import given

from blockdrop_min import BlockDrop, FixedPolicy, greedy


def pair(seed=0, **options):
    """A small random BlockDrop of three blocks: float64, eval mode."""
    return (
        BlockDrop(small_resnet(seed=seed), small_policy_net(3, seed=seed + 1), **options)
        .double()
        .eval()
    )


# ------------------------------------------------------------------------------------------ by hand
def test_uint8_images_are_scaled_to_1_and_normalised_by_channel():
    model = BlockDrop(
        small_resnet(), small_policy_net(3), mean=(0.0, 0.5, 0.2), std=(1.0, 0.5, 0.4)
    )
    x = model.prepare(torch.tensor([0, 255, 51], dtype=torch.uint8).view(1, 3, 1, 1))
    assert_same(
        x.flatten(), torch.tensor([0.0, 1.0, 0.0]), 1e-6
    )  # (1 - 0.5) / 0.5 and (51/255 - 0.2) / 0.4


def test_float_images_are_normalised_but_not_scaled():
    model = BlockDrop(
        small_resnet(), small_policy_net(3), mean=(1.0, 1.0, 1.0), std=(2.0, 2.0, 2.0)
    )
    assert model.prepare(torch.full((1, 3, 1, 1), 5.0)).flatten().tolist() == [2, 2, 2]


# ---------------------------------------------------------------------------------------- two roads
@given(cases(families=("cifar",)))
def test_the_logits_are_those_of_the_resnet_under_the_greedy_policy(case):
    policy = small_policy_net(case.K, seed=case.seed)
    logits, u = BlockDrop(case.net, policy).eval()(case.x)
    assert_equal(u, greedy(policy(case.x)))
    assert_same(logits, case.net(case.x, u, "masked"))


def test_both_networks_see_the_normalised_images():
    model = pair(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)).float()
    x = torch.randint(256, (4, 3, 9, 9), generator=rng(0), dtype=torch.uint8)
    channels = zip(x.unbind(1), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), strict=True)
    prepared = torch.stack([(channel / 255 - mean) / std for channel, mean, std in channels], 1)
    logits, u = model(x)
    assert_equal(u, greedy(model.policy(prepared)))
    assert_same(logits, model.resnet(prepared, u), 1e-4)


def test_in_training_mode_blocks_run_masked():
    model = pair().train()
    x = images(6)
    logits, u = model(x)
    assert 0 < u.mean() < 1
    assert_same(logits, model.resnet(x, u, "masked"))


@pytest.mark.parametrize("training", [False, True])
def test_a_block_meets_the_images_that_keep_it_in_use_and_all_images_in_training(training):
    model = pair().train(training)
    met = []
    for block in model.resnet.blocks:
        block.conv1.register_forward_hook(lambda layer, inputs, output: met.append(len(output)))
    kept = model(images(6))[1].sum(0).tolist()
    assert set(kept) - {0, 6}
    assert met == ([6] * 3 if training else [count for count in kept if count])


# --------------------------------------------------------------------------------------------- laws
def test_the_images_move_to_memory_format_channels_last():
    assert pair().prepare(images(2)).is_contiguous(memory_format=torch.channels_last)


def test_images_of_another_memory_format_give_the_same():
    model = pair()
    x = images(4)
    for ours, other in zip(
        model(x), model(x.contiguous(memory_format=torch.channels_last)), strict=True
    ):
        assert_same(ours, other)


def test_a_higher_threshold_keeps_fewer_blocks():
    x = images(8)
    kept = [pair(threshold=threshold)(x)[1] for threshold in (0.0, 0.3, 0.5, 0.7, 1.1)]
    assert (kept[0] == 1).all()
    assert all((higher <= lower).all() for lower, higher in pairwise(kept))
    assert (kept[-1] == 0).all()


def test_normalisation_is_no_part_of_the_weights():
    assert {name.split(".")[0] for name in pair().state_dict()} == {"resnet", "policy"}


@given(cases(families=("cifar",)), seeds)
def test_a_fixed_policy_is_the_same_for_every_image(case, seed):
    u = policies(1, case.K, seed)[0]
    logits, used = BlockDrop(case.net, FixedPolicy(u)).eval()(case.x)
    assert_equal(used.double(), u.expand(case.B, -1))
    assert_same(logits, case.net(case.x, u))


def test_a_fixed_policy_has_nothing_to_learn_and_is_saved():
    fixed = FixedPolicy(torch.tensor([1, 0, 1]))
    assert list(fixed.parameters()) == []
    assert fixed.state_dict()["u"].tolist() == [1, 0, 1]
    assert fixed.num_blocks == 3


# -------------------------------------------------------------------------------------------- edges
def test_a_batch_without_images_gives_no_logits_and_no_policies():
    logits, u = pair()(images(0))
    assert (logits.shape, u.shape) == ((0, 5), (0, 3))


@pytest.mark.parametrize("policy", [small_policy_net(4), FixedPolicy(torch.ones(4))])
def test_networks_that_disagree_in_K_are_refused(policy):
    with pytest.raises(
        ValueError, match="the ResNet has 3 blocks but the policy network decides on 4"
    ):
        BlockDrop(small_resnet(), policy)

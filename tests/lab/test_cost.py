"""FLOPs, to the integer: the literature's constants, counts by hand, and what really runs."""

import pytest
import torch
from helpers import assert_equal, cases, few, seeds, small_policy_net, small_resnet, state
from hypothesis import given
from torch.utils.flop_counter import FlopCounterMode

from blockdrop_min import BlockDrop, Cost, fast, policy_cost, policy_net, resnet, resnet_cost


def counted(run):
    """What PyTorch counts while it runs."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return counter.get_total_flops()


def on_meta(make, *arguments):
    with torch.device("meta"):
        return make(*arguments)


# ------------------------------------------------------------------------------------------ by hand
# depth, classes, family, image side: all on, none on, one block, {the blocks that differ}
# depth, classes, family, image side -> all on, none on, one block, {the blocks that differ}
OTHERS = {0: 359_661_568, 3: 539_492_352, 7: 539_492_352, 30: 539_492_352}
TABLE = {
    (32, 10, "cifar", 32): (137_725_184, 886_016, 9_437_184, {5: 7_077_888, 10: 7_077_888}),
    (110, 10, "cifar", 32): (505_775_360, 886_016, 9_437_184, {18: 7_077_888, 36: 7_077_888}),
    (32, 100, "cifar", 32): (137_736_704, 897_536, 9_437_184, {5: 7_077_888, 10: 7_077_888}),
    (110, 100, "cifar", 32): (505_786_880, 897_536, 9_437_184, {18: 7_077_888, 36: 7_077_888}),
    (101, 1000, "imagenet", 224): (15_602_810_880, 959_447_040, 436_731_904, OTHERS),
}


@pytest.mark.parametrize("key", TABLE)
def test_the_published_networks_cost_what_the_table_says(key):
    depth, classes, family, side = key
    full, none, block, others = TABLE[key]
    cost = resnet_cost(on_meta(resnet, depth, classes, family), side)
    assert cost.blocks == tuple(others.get(k, block) for k in range(len(cost.blocks)))
    assert (cost.full, cost.fixed) == (full, none)


@pytest.mark.parametrize(
    ("num_blocks", "family", "side", "table", "value_head"),
    [(15, "cifar", 32, 24_479_744, 128), (54, "cifar", 32, 24_484_736, 128),
     (33, "imagenet", 224, 471_918_592, 1024)],
)  # fmt: skip
def test_the_policy_nets_cost_what_the_table_says_without_its_value_head(
    num_blocks, family, side, table, value_head
):
    cost = policy_cost(on_meta(policy_net, num_blocks, family), side)
    assert cost == table - value_head


def test_a_network_of_one_block_by_hand():
    cost = resnet_cost(small_resnet((1,), (4,), 5), (6, 7))
    stem, classifier = 2 * 3 * 3 * 3 * 4 * 42, 2 * 4 * 5  # 2 x kernel area x in x out x pixels
    assert cost == Cost(stem + classifier, (2 * (2 * 3 * 3 * 4 * 4 * 42),))
    assert {type(number) for number in (cost.fixed, *cost.blocks)} == {int}


@pytest.mark.parametrize(("half", "pixels"), [(False, (60, 15, 6)), (True, (15, 6, 2))])
def test_a_policy_net_by_hand(half, pixels):
    policy = small_policy_net(7, width=2, half_size=half)  # channels 2, 4, 8; the image is 10 x 6
    (a, b, c) = pixels  # of its segments: sides 5, 3 become 3, 2
    stem, blocks = 3 * 2 * a, 2 * 2 * 2 * a + (2 * 4 + 4 * 4) * b + (4 * 8 + 8 * 8) * c
    assert policy_cost(policy, (10, 6)) == 2 * (9 * (stem + blocks) + 8 * 7)


def test_the_cost_of_policies_adds_up_what_they_keep():
    u = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 1, 1], [1, 1, 1]])
    cost = Cost(100, (1, 20, 300))
    assert cost.of(u).tolist() == [100, 101, 420, 421]
    assert cost.full == 421
    cost = Cost(2**40 + 1, (3, 2**30 + 1))  # more than float32 holds
    assert cost.of(torch.ones(1, 2)).tolist() == [2**40 + 2**30 + 5]


# ---------------------------------------------------------------------------------------- two roads
@given(cases())
def test_each_image_costs_what_pytorch_counts_when_it_runs_sparsely_under_its_policy(case):
    cost = resnet_cost(case.net, tuple(case.x.shape[2:])).of(case.u)
    for i in range(case.B):
        assert counted(lambda i=i: case.net(case.x[i : i + 1], case.u[i], "sparse")) == cost[i]


@few
@given(cases(families=("cifar",)), seeds)
def test_a_blockdrop_costs_its_policy_net_and_the_blocks_it_keeps(case, seed):
    model = BlockDrop(case.net, small_policy_net(case.K, seed=seed)).eval()
    size, x = tuple(case.x.shape[2:]), case.x.sigmoid()[:1]
    expected = policy_cost(model.policy, size) + resnet_cost(case.net, size).of(model(x)[1])
    assert counted(lambda: model(x)) == expected


def test_policies_on_another_device_have_their_costs_there():
    assert Cost(1, (2, 3)).of(torch.ones(4, 2, device="meta")).is_meta


def test_counting_leaves_no_trace_in_a_network():
    net = small_resnet().train()
    before = state(net)
    assert resnet_cost(net, 9) == resnet_cost(net, (9, 9))
    assert net.training and all(p.grad is None and p.requires_grad for p in net.parameters())
    assert_equal(state(net), before)


def test_a_copy_for_inference_costs_the_same():
    net, policy = small_resnet(), small_policy_net(3)
    assert resnet_cost(fast(net), 9) == resnet_cost(net, 9)
    assert policy_cost(fast(policy), 9) == policy_cost(policy, 9)


# -------------------------------------------------------------------------------------------- edges
@pytest.mark.parametrize("size", [0, -3, (0, 5), (5, 0), (1, 2, 3), (7,)])
@pytest.mark.parametrize("cost", [resnet_cost, policy_cost])
def test_an_impossible_image_size_is_refused(size, cost):
    allowed = r"it must be a side of at least 1 pixel, or \(height, width\)"
    with pytest.raises(ValueError, match=f"image_size is .*; {allowed}"):
        cost(small_resnet() if cost is resnet_cost else small_policy_net(3), size)

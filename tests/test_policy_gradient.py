"""The exact policy gradient: where all 2^K policies can be summed, the expected gradient of the loss is known.

J = sum over u of pi(u) R(u) is written out in full and differentiated by autograd. The road under test never differentiates
pi: it takes `policy_loss` of each policy, weighted with the probability of sampling that policy. Both must agree.
"""

import itertools
from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from helpers import (
    alphas,
    assert_same,
    every_policy,
    gradients,
    images,
    masks,
    policies,
    probabilities,
    rng,
    seeds,
    small_policy_net,
    small_resnet,
)
from hypothesis import given
from hypothesis import strategies as st

from blockdrop_min import BlockDrop, bound, entropy, force_on, free_blocks, greedy, policy_loss, reward, sample, training
from blockdrop_min.finetuning import policy_step


# ------------------------------------------------------------------------------------------------- the two roads
def expected_reward(s_bounded, free, R):
    """J, written out: a free block is kept with probability s and dropped with 1 - s, another one is always kept.

    R: a dict from policy (a tuple of K numbers) to the rewards [B].
    """
    total = 0
    for u in itertools.product((0, 1), repeat=len(free)):
        pi = torch.ones(len(s_bounded), dtype=s_bounded.dtype)
        for k, keep in enumerate(u):
            if free[k]:
                pi = pi * (s_bounded[:, k] if keep else 1 - s_bounded[:, k])
            elif not keep:
                pi = pi * 0
        total = total + pi * R[u]
    return total.mean()


def expected_loss(s_bounded, free, R, baseline):
    """The policy loss in expectation over the samples: each of the 2^K as likely as `sample` draws it, with its advantage.

    baseline: a function of the policy u (a tuple) giving [B].
    """
    total = 0
    for u in every_policy(len(free)):
        likely = torch.where(u.bool(), s_bounded, 1 - s_bounded).prod(1).detach()  # [B]
        u = force_on(u.expand_as(s_bounded), free)
        advantage = R[key(u[0])] - baseline(key(u[0]))
        total = total + policy_loss(s_bounded, u, likely * advantage, free)
    return total


def key(u):
    return tuple(u.int().tolist())


def self_critical(s, free, R):
    """The rewards of the greedy policies, forced like the samples: a baseline that does not depend on the sample."""
    u_greedy = force_on(greedy(s.detach()), free)
    rewards = torch.stack([R[key(u)][i] for i, u in enumerate(u_greedy)])
    return lambda u: rewards


@st.composite
def problems(draw):
    """Probabilities of up to 6 blocks, bounded by some alpha; at least one is free; any reward for any policy."""
    s, alpha, seed = draw(probabilities(max_blocks=6)), draw(alphas), draw(seeds)
    (B, K), g = s.shape, rng(seed)
    R = {key(u): torch.randn(B, generator=g, dtype=torch.float64) for u in every_policy(K)}
    s.requires_grad_()
    return SimpleNamespace(s=s, s_bounded=bound(s, alpha), free=draw(masks(K, min_free=1)), R=R, B=B, K=K, alpha=alpha, g=g)


def gradient(scalar, s):
    return torch.autograd.grad(scalar, s, retain_graph=True)[0]


def zero(u):
    return 0.0


# ------------------------------------------------------------------------------------------------------- by hand
def test_the_gradient_for_one_block_is_the_difference_of_its_two_rewards():
    s = torch.tensor([[0.3]], requires_grad=True)
    R = {(0,): torch.tensor([0.25]), (1,): torch.tensor([2.0])}  # J = 0.3 x 2 + 0.7 x 0.25, dJ/ds = 2 - 0.25
    free = torch.tensor([True])
    assert gradient(expected_reward(s, free, R), s).item() == pytest.approx(1.75)
    assert gradient(expected_loss(s, free, R, zero), s).item() == pytest.approx(-1.75)


def test_bounding_shrinks_the_gradient_by_2_alpha_minus_1():
    s = torch.tensor([[0.3]], requires_grad=True)
    R = {(0,): torch.tensor([0.25]), (1,): torch.tensor([2.0])}
    loss = expected_loss(bound(s, 0.8), torch.tensor([True]), R, zero)
    assert gradient(loss, s).item() == pytest.approx(-1.75 * 0.6)


# ------------------------------------------------------------------------------- two roads: the expected reward
@given(problems())
def test_the_expected_gradient_is_that_of_the_expected_reward(p):
    expected = -gradient(expected_reward(p.s_bounded, p.free, p.R), p.s)
    assert_same(gradient(expected_loss(p.s_bounded, p.free, p.R, zero), p.s), expected, 1e-10)


@given(problems())
def test_the_self_critical_baseline_leaves_it_unchanged(p):
    expected = -gradient(expected_reward(p.s_bounded, p.free, p.R), p.s)
    loss = expected_loss(p.s_bounded, p.free, p.R, self_critical(p.s, p.free, p.R))
    assert_same(gradient(loss, p.s), expected, 1e-10)


@given(problems(), st.floats(-100, 100))
def test_any_baseline_that_knows_the_image_but_not_the_sample_leaves_it_unchanged(p, scale):
    baseline = scale * torch.randn(p.B, generator=p.g, dtype=torch.float64)
    expected = -gradient(expected_reward(p.s_bounded, p.free, p.R), p.s)
    assert_same(gradient(expected_loss(p.s_bounded, p.free, p.R, lambda u: baseline), p.s), expected, 1e-10)


@given(problems(), st.floats(0, 10))
def test_with_the_entropy_bonus_it_is_that_of_the_expected_reward_plus_beta_entropies(p, beta):
    def coin(q):  # the entropy of one block, by its definition
        return -(q * q.log() + (1 - q) * (1 - q).log())

    bonus = sum((coin(p.s_bounded[:, k]).mean() for k in range(p.K) if p.free[k]), p.s.sum() * 0)
    expected = -gradient(expected_reward(p.s_bounded, p.free, p.R) + beta * bonus, p.s)
    loss = expected_loss(p.s_bounded, p.free, p.R, self_critical(p.s, p.free, p.R)) - beta * entropy(p.s_bounded, p.free)
    assert_same(gradient(loss, p.s), expected, 1e-10)


# ---------------------------------------------------------------------------- two roads: through real networks
@pytest.fixture(scope="module")
def world():
    """Four images, a ResNet of three blocks and a policy network; all rewards, from the ResNet's own predictions."""
    net, policy, x = small_resnet(seed=8), small_policy_net(3, width=2, seed=2), images(4)
    net.fc.bias.data.zero_()
    y = net(x, torch.tensor([1, 0, 1])).argmax(1)  # right under this policy, and under some others
    R = {}
    for u in every_policy(3):
        with torch.no_grad():
            correct = net(x, u, "sparse").argmax(1) == y
        R[key(u)] = reward(u.expand(4, -1), correct, gamma=2)
    return SimpleNamespace(net=net, policy=policy, x=x, y=y, R=R)


def test_in_that_world_rewards_depend_on_image_and_policy(world):
    table = torch.stack(list(world.R.values()))  # [2^K, B]
    assert all(len(column.unique()) > 2 for column in table.T)
    assert any(len(row.unique()) > 1 for row in table)


@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("alpha", [0.8, 1.0])
@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_every_parameter_of_a_policy_net_gets_the_gradient_of_the_expected_reward(world, epoch, alpha, beta):
    free, s = free_blocks(epoch, 3), world.policy(world.x).double()
    s_bounded = bound(s, alpha)
    J = expected_reward(s_bounded, free, world.R) + beta * entropy(s_bounded, free)
    loss = expected_loss(s_bounded, free, world.R, self_critical(s, free, world.R)) - beta * entropy(s_bounded, free)
    actual, expected = gradients(loss, world.policy), gradients(-J, world.policy)
    assert_same(actual, expected, 1e-8)
    assert any(g.abs().max() > 1e-3 for g in expected.values())


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_a_policy_step_gives_it_in_expectation_over_what_it_samples(world, monkeypatch, epoch, joint):
    x, y, free = world.x[:2], world.y[:2], free_blocks(epoch, 3)
    model = BlockDrop(deepcopy(world.net), deepcopy(world.policy).train())
    s_bounded, total = bound(model.policy(x), 0.8), 0
    for u in every_policy(6).view(-1, 2, 3):  # all that two images can sample, each as likely as `sample` draws it
        monkeypatch.setattr(training, "sample", lambda s_bounded, generator, u=u: u)
        likely = torch.where(u.bool(), s_bounded, 1 - s_bounded).prod().detach()
        total += likely * policy_step(model, x, y, free, 0.8, 0.1, 2, None, joint=joint, full_share=0.5)[0]
    J = expected_reward(s_bounded, free, {u: R[:2] for u, R in world.R.items()}) + 0.1 * entropy(s_bounded, free)
    expected = gradients(-J, model.policy)
    assert_same(gradients(total, model.policy), expected, 1e-8)
    assert any(g.abs().max() > 1e-3 for g in expected.values())


def test_one_step_along_it_raises_the_expected_reward(world):
    policy, free = deepcopy(world.policy), torch.ones(3, dtype=torch.bool)
    s = policy(world.x).double()
    expected_loss(bound(s, 0.8), free, world.R, self_critical(s, free, world.R)).backward()
    torch.optim.SGD(policy.parameters(), lr=1e-3).step()
    after = policy(world.x).double()
    assert expected_reward(bound(after, 0.8), free, world.R) > expected_reward(bound(s, 0.8), free, world.R)


# ------------------------------------------------------------------------------------- counter-examples, by hand
def test_a_baseline_that_knows_the_sample_does_not_leave_it_unchanged():
    s, free = torch.tensor([[0.3, 0.6]], requires_grad=True), torch.tensor([True, True])
    R = {u: torch.tensor([float(sum(u))]) for u in itertools.product((0, 1), repeat=2)}  # J = s1 + s2
    assert_same(gradient(expected_loss(s, free, R, zero), s), torch.tensor([[-1.0, -1.0]]), 1e-6)
    assert_same(gradient(expected_loss(s, free, R, lambda u: R[u] / 2), s), torch.tensor([[-0.5, -0.5]]), 1e-6)
    assert_same(gradient(expected_loss(s, free, R, lambda u: R[u]), s), torch.zeros(1, 2), 1e-6)


def test_the_log_probability_of_probabilities_that_were_not_sampled_from_gives_another_gradient():
    s = torch.tensor([[0.9]], dtype=torch.float64, requires_grad=True)
    R, loss = (1.0, 3.0), 0
    for u, likely in ((0, 0.26), (1, 0.74)):  # sampled from bound(0.9, 0.8) = 0.74, but the log of s itself is taken
        loss = loss + policy_loss(s, torch.tensor([[float(u)]]), torch.tensor([likely * R[u]], dtype=s.dtype))
    assert gradient(loss, s).item() == pytest.approx(-(0.74 * 3 / 0.9 - 0.26 * 1 / 0.1))  # and not -0.6 x (3 - 1)


# --------------------------------------------------------------------------------------------- laws: by sampling
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("baseline", ["none", "self-critical"])
def test_the_mean_over_samples_comes_within_its_standard_error(seed, baseline):
    N, K, free = 20_000, 4, torch.tensor([False, True, True, True])
    s = (0.05 + 0.9 * torch.rand(1, K, generator=rng(seed), dtype=torch.float64)).requires_grad_()
    correct = dict(zip(map(key, every_policy(K)), policies(2**K, 1, seed).bool(), strict=True))
    R = {u: reward(torch.tensor([u]), correct[u], 1).double() for u in correct}
    exact = -gradient(expected_reward(bound(s, 0.8), free, R), s)[0]

    repeated = s.detach().expand(N, -1).clone().requires_grad_()  # each sample gets a row, and so a gradient, of its own
    u = force_on(sample(bound(repeated, 0.8), rng(seed)), free)
    rewards = reward(u, torch.stack([correct[key(row)][0] for row in u]), 1)
    critic = self_critical(s, free, R)(None) if baseline == "self-critical" else 0.0
    each = N * gradient(policy_loss(bound(repeated, 0.8), u, rewards - critic, free), repeated)  # [N, K]
    assert ((each.mean(0) - exact).abs() <= 4.5 * each.std(0) / N**0.5).all()
    assert (each.std(0)[free] > 0).all()


# ---------------------------------------------------------------------------------------------------------- edges
@given(problems())
def test_with_no_block_free_there_is_no_gradient(p):
    nothing = torch.zeros(p.K, dtype=torch.bool)
    assert not gradient(expected_loss(p.s_bounded, nothing, p.R, zero), p.s).any()
    assert not gradient(entropy(p.s_bounded, nothing), p.s).any()


@given(problems())
def test_equal_rewards_give_no_gradient(p):
    R = dict.fromkeys(p.R, torch.full((p.B,), 7.0, dtype=torch.float64))
    assert_same(gradient(expected_loss(p.s_bounded, p.free, R, zero), p.s), torch.zeros_like(p.s), 1e-10)


@given(problems())
def test_the_self_critical_advantage_of_the_greedy_policy_is_0(p):
    u_greedy = force_on(greedy(p.s), p.free)
    baseline = self_critical(p.s, p.free, p.R)
    for i, u in enumerate(u_greedy):
        assert p.R[key(u)][i] - baseline(key(u))[i] == 0

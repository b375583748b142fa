"""One training step of each stage: what its loss is, what it reaches, and what it leaves alone."""

import copy
import itertools
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same, few, gradients, masks, policies, rng, seeds
from hypothesis import given
from hypothesis import strategies as st
from runs import batch, bits, pair, short_run
from torch.profiler import ProfilerActivity, profile

import train
from blockdrop_min import bound, entropy, force_on, greedy, policy_loss, sample
from blockdrop_min.lab.folding import fast
from blockdrop_min.lab.settings import STAGES, Settings
from blockdrop_min.finetuning import (
    correct_under,
    correct_under_both,
    policy_step,
    pretrain_step,
    random_policies,
    set_mode,
    settled_step,
    warm_step,
)
from train import free_in, learning_rate

ALL = torch.ones(3, dtype=torch.bool)
ALPHA = 0.8
BETA = 0.1
GAMMA = 2.0
fixed_step = partial(settled_step, gamma=GAMMA)


def ready(stage, seed=0, **options):
    """A small BlockDrop of three blocks in the mode of a stage, with the classifier of the warm start."""
    model = pair(seed=seed, **options)
    if options.get("fixed") is None:
        torch.manual_seed(seed)
        model.classifier = torch.nn.Linear(model.policy.features.num_features, 5)
    set_mode(model, stage)
    return model


def step(model, x, y, free=ALL, seed=0, **options):
    return policy_step(model, x, y, free, ALPHA, BETA, GAMMA, rng(seed), **options)


def draws(model, x, free=ALL, seed=0):
    """What a step with this seed draws, on a copy: (s_bounded, u, u_greedy)."""
    s = copy.deepcopy(model).policy(x)
    s_bounded = bound(s, ALPHA)
    return s_bounded, force_on(sample(s_bounded, rng(seed)), free), force_on(greedy(s), free)


def state(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def by_hand(u, correct):
    """The reward of one policy as plain numbers."""
    return 1 - (sum(u) / len(u)) ** 2 if correct else -GAMMA


# ------------------------------------------------------------------------------------------ by hand
@pytest.mark.parametrize(
    ("stage", "resnet", "policy"),
    [("pretrain", True, False), ("curriculum", False, True), ("finetune", True, True)],
)
def test_each_stage_trains_its_networks_and_freezes_the_others(stage, resnet, policy):
    model = pair()
    for before in ("pretrain", "curriculum", "finetune"):  # whatever came before
        set_mode(model, before)
        set_mode(model, stage)
        assert {module.training for module in model.resnet.modules()} == {resnet}
        assert {module.training for module in model.policy.modules()} == {policy}
        assert {p.requires_grad for p in model.resnet.parameters()} == {resnet}
        assert {p.requires_grad for p in model.policy.parameters()} == {policy}


def test_rewards_and_advantages_equal_a_loop_over_images():
    model = ready("curriculum")
    (x, _) = batch(60)
    _, u, u_greedy = draws(model, x)
    classes = torch.stack(
        [model.resnet(x, policy).argmax(1) for policy in (u, u_greedy, torch.ones(60, 3))]
    )
    assert all((one != other).any() for one, other in itertools.combinations(classes, 2))
    y = classes[
        torch.arange(60) % 3, torch.arange(60)
    ]  # each policy is right for a third of the images, at least
    _, seen = step(model, x, y)
    for i in range(60):
        right = [
            bool(model.resnet(x[i : i + 1], policy[i]).argmax() == y[i]) for policy in (u, u_greedy)
        ]
        R = by_hand(u[i].tolist(), right[0])
        R_greedy = by_hand(u_greedy[i].tolist(), right[1])
        assert seen["R"][i].item() == pytest.approx(R, abs=1e-6)
        assert seen["A"][i].item() == pytest.approx(R - R_greedy, abs=1e-6)
        assert bool(seen["correct"][i]) == right[0]


def test_random_policies_drop_blocks_in_the_stated_share_of_the_images():
    u = random_policies(20_000, 300, 0.4, rng(0))
    assert (u.mean(1) < 1).double().mean().item() == pytest.approx(0.4, abs=0.02)


def test_the_keep_rates_of_random_policies_are_uniform_from_15_percent_to_all():
    rates = random_policies(20_000, 400, 1.0, rng(0)).mean(1)
    assert rates.mean().item() == pytest.approx((0.15 + 1) / 2, abs=0.01)
    assert rates.std().item() == pytest.approx((1 - 0.15) / 12**0.5, abs=0.01)
    assert rates.min() > 0.05  # 0.15, less four standard deviations of a mean over 400 blocks


def test_a_plain_pretraining_step_is_cross_entropy_of_the_full_network():
    model = ready("pretrain")
    (x, y) = batch()
    expected = F.cross_entropy(copy.deepcopy(model).resnet(x), y)
    assert_same(
        pretrain_step(model, x, y, 0.0, generator=None)[0], expected, 1e-6
    )  # and draws no random numbers


def test_the_learning_rate_by_hand():
    cosine = [learning_rate("cosine", "finetune", progress) for progress in (0, 0.1, 0.2, 0.6, 1)]
    assert cosine == pytest.approx([0, 0.5, 1, 0.5, 0], abs=1e-6)
    steps = {
        stage: [learning_rate("step", stage, progress) for progress in (0, 0.79, 0.8, 1)]
        for stage in ("curriculum", "finetune")
    }
    assert steps == {"curriculum": [1, 1, 1, 1], "finetune": [1, 1, 0.1, 0.1]}
    assert [
        learning_rate("step", "pretrain", progress) for progress in (0.1, 0.6)
    ] == pytest.approx([0.5, 0.5])


def test_dropping_sets_in_between_a_fifth_and_two_fifths_of_pretraining(monkeypatch):
    seen = []
    (x, y) = batch()
    monkeypatch.setattr(train, "pretrain_step", lambda *given: seen.append(given[3]))
    for progress in (0, 0.2, 0.3, 0.4, 1):
        train.take_step(ready("pretrain"), "pretrain", Settings(), x, y, ~ALL, progress, rng(0))
    assert seen == pytest.approx([0, 0, 0.375, 0.75, 0.75])


def test_the_optimizers_are_those_of_the_authors():
    found = {stage: train.make_optimizer(ready(stage), stage, Settings()) for stage in STAGES}
    assert [type(optimizer) for optimizer in found.values()] == [
        torch.optim.SGD,
        torch.optim.Adam,
        torch.optim.Adam,
    ]
    named = {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
    assert named.items() <= found["pretrain"].param_groups[0].items()
    for stage, rate in (("curriculum", 2e-3), ("finetune", 1e-3)):
        assert {"lr": rate, "weight_decay": 0, "betas": (0.9, 0.999)}.items() <= found[
            stage
        ].param_groups[0].items()


@pytest.mark.parametrize(
    ("stage", "settle_by", "expected"),
    [
        (
            "finetune",
            0.8,
            [(0.8, 0.05, 5.0, True, 0.125), (0.9, 0.025, 5.0, True, 0.125), (5.0,), (5.0,)],
        ),
        ("finetune", 0.0, [(0.8, 0.05, 5.0, True, 0.125)] * 4),
        ("curriculum", 0.8, [(0.8, 0.1, 4.0, False, 0.125)] * 4),
    ],
)
def test_exploration_fades_and_the_policy_settles_in_finetuning_alone(
    monkeypatch, stage, settle_by, expected
):
    seen = []
    (x, y) = batch()
    # alpha, beta, gamma, joint, full_share
    monkeypatch.setattr(train, "policy_step", lambda *given: seen.append(given[4:7] + given[8:10]))
    monkeypatch.setattr(train, "settled_step", lambda *given: seen.append(given[3:]))  # gamma
    for progress in (0, 0.4, 0.8, 1):
        train.take_step(
            ready(stage), stage, Settings(settle_by=settle_by), x, y, ALL, progress, rng(0)
        )
    assert seen == [pytest.approx(numbers) for numbers in expected]


# ---------------------------------------------------------------------------------------- two roads
@few
@given(seeds, masks(3))
def test_the_curriculum_loss_is_the_policy_loss_less_the_entropy_bonus(seed, free):
    model = ready("curriculum", seed % 100)
    (x, y) = batch(seed=seed)
    s_bounded, u, _ = draws(model, x, free, seed)
    loss, seen = step(model, x, y, free, seed)
    assert_same(
        loss, policy_loss(s_bounded, u, seen["A"], free) - BETA * entropy(s_bounded, free), 1e-5
    )


@pytest.mark.parametrize(
    ("share", "full"), [(0.0, 0), (0.1, 1), (0.5, 3), (1.0, 6)]
)  # of 6 images, rounded up
@few
@given(seed=seeds)
def test_finetuning_adds_the_cross_entropy_of_the_sampled_pass_and_of_a_share_of_full_passes(
    share, full, seed
):
    model = ready("finetune", seed % 100)
    (x, y) = batch(seed=seed)
    s_bounded, u, _ = draws(model, x, seed=seed)
    inputs = torch.cat([x, x[:full]])
    targets = torch.cat([y, y[:full]])
    logits = copy.deepcopy(model).resnet(
        inputs, torch.cat([u, torch.ones(full, 3)]), execute="sparse"
    )
    loss, seen = step(model, x, y, seed=seed, joint=True, full_share=share)
    policy_part = policy_loss(s_bounded, u, seen["A"]) - BETA * entropy(s_bounded)
    assert_same(loss, policy_part + F.cross_entropy(logits, targets), 1e-5)
    assert_equal(seen["correct"], logits[:6].argmax(1) == y)


def test_a_warm_start_step_is_cross_entropy_of_a_classifier_on_the_policys_features():
    model = ready("curriculum")
    (x, y) = batch()
    expected = F.cross_entropy(model.classifier(copy.deepcopy(model).policy.embed(x)), y)
    assert_same(warm_step(model, x, y)[0], expected, 1e-6)


def test_a_fixed_policys_step_is_cross_entropy_under_it():
    model = ready("finetune", fixed=[1.0, 0.0, 1.0])
    (x, y) = batch()
    expected = F.cross_entropy(copy.deepcopy(model).resnet(x, torch.tensor([1.0, 0.0, 1.0])), y)
    assert_same(fixed_step(model, x, y)[0], expected, 1e-5)


@few
@given(seeds)
def test_a_settled_step_is_cross_entropy_under_the_policies_that_the_model_has_in_use(seed):
    model = ready("finetune", seed % 100)
    (x, y) = batch(20, seed=seed)
    reference = copy.deepcopy(model)
    u = greedy(reference.policy.eval()(x))
    logits = reference.resnet(x, u, execute="sparse")  # in training mode
    loss, seen = settled_step(model, x, y, GAMMA)
    assert_same(loss, F.cross_entropy(logits, y), 1e-5)
    right = (logits.argmax(1) == y).tolist()
    assert seen["R"].tolist() == pytest.approx(
        [by_hand(policy, r) for policy, r in zip(u.tolist(), right, strict=True)]
    )
    assert not seen["A"].any()


def test_a_settled_step_leaves_the_policy_network_as_it_is():
    model = ready("finetune")
    (x, y) = batch()
    before = state(model.policy)
    settled_step(model, x, y, GAMMA)[0].backward()
    assert all(
        torch.equal(now, before[name]) for name, now in state(model.policy).items()
    )  # BatchNorm's statistics, too
    assert all(p.grad is None for p in model.policy.parameters())
    assert any(p.grad is not None and p.grad.any() for p in model.resnet.parameters())


@pytest.mark.parametrize(
    ("stage", "logits_of", "step_of"),
    [
        (
            "pretrain",
            lambda model, x: model.resnet(x),
            lambda model, x, y: pretrain_step(model, x, y, 0.0, None),
        ),
        ("curriculum", lambda model, x: model.classifier(model.policy.embed(x)), warm_step),
        ("finetune", lambda model, x: model.resnet(x, model.policy.u, "sparse"), fixed_step),
    ],
)
def test_a_step_says_which_predictions_are_right(stage, logits_of, step_of):
    model = ready(stage, fixed=[1.0, 0.0, 1.0] if step_of is fixed_step else None)
    (x, _) = batch()
    y = logits_of(copy.deepcopy(model), x).argmax(1)
    y[1::2] = (y[1::2] + 1) % 5
    assert step_of(model, x, y)[1]["correct"].tolist() == [True, False] * 3


def test_what_is_right_under_a_policy_equals_one_image_at_a_time():
    model = pair()
    (x, y) = batch(30)
    u = policies(30, 3).float()
    one_by_one = [bool(model.resnet(x[i : i + 1], u[i]).argmax() == y[i]) for i in range(30)]
    assert correct_under(model.resnet, x, y, u).tolist() == one_by_one


# ----------------------------------------------------------------------- laws: what a step computes
def met(model, run):
    """How many images all blocks of the ResNet meet while it runs."""
    counts = []
    hooks = [
        b.conv1.register_forward_hook(lambda layer, x, y: counts.append(len(y)))
        for b in model.resnet.blocks
    ]
    run()
    for hook in hooks:
        hook.remove()
    return sum(counts)


@pytest.mark.parametrize(("stage", "full"), [("curriculum", 0), ("finetune", 3)])
def test_a_policy_step_computes_the_blocks_that_its_samples_and_greedy_policies_keep(stage, full):
    model = ready(stage)
    (x, y) = batch()
    _, u, u_greedy = draws(model, x)
    computed = met(model, lambda: step(model, x, y, joint=full > 0, full_share=0.5))
    assert computed == u.sum() + u_greedy.sum() + 3 * full


def test_a_pretraining_step_computes_the_blocks_that_its_random_policies_keep():
    model = ready("pretrain")
    (x, y) = batch(12)
    assert (
        met(model, lambda: pretrain_step(model, x, y, 1.0, rng(4)))
        == random_policies(12, 3, 1.0, rng(4)).sum()
        < 36
    )


def test_a_fixed_policys_step_computes_the_blocks_that_it_keeps():
    model = ready("finetune", fixed=[1.0, 0.0, 1.0])
    (x, y) = batch()
    assert met(model, lambda: fixed_step(model, x, y)) == 2 * 6


# ------------------------------------------------------------------- laws: what a step leaves alone
@pytest.mark.parametrize(
    "step_of", [step, lambda model, x, y: warm_step(model, x, y)], ids=["policy", "warm"]
)
def test_a_curriculum_step_leaves_the_resnet_bitwise_as_it_was(step_of):
    model = ready("curriculum")
    (x, y) = batch()
    before = state(model.resnet)
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    step_of(model, x, y)[0].backward()
    optimizer.step()
    assert all(
        torch.equal(tensor, before[name]) for name, tensor in model.resnet.state_dict().items()
    )
    assert all(p.grad is None for p in model.resnet.parameters())


def test_a_curriculum_leaves_the_resnet_bitwise_as_it_was(tmp_path):
    short_run(tmp_path, "--stages=pretrain")
    before = {path: value for path, value in bits(tmp_path).items() if path[0] == "resnet"}
    short_run(tmp_path, "--stages=pretrain,curriculum")
    after = bits(tmp_path)
    assert after["stage",] == "curriculum"
    assert len(before) > 20
    assert {path: after[path] for path in before} == before


def test_a_pretraining_step_leaves_the_policy_network_bitwise_as_it_was():
    model = ready("pretrain")
    (x, y) = batch()
    before = state(model.policy)
    pretrain_step(model, x, y, 0.5, rng(0))[0].backward()
    assert all(
        torch.equal(tensor, before[name]) for name, tensor in model.policy.state_dict().items()
    )
    assert all(p.grad is None for p in model.policy.parameters())


def test_the_greedy_pass_of_finetuning_updates_no_batchnorm():
    model = ready("finetune")
    (x, y) = batch()
    sampled_only = copy.deepcopy(model).resnet
    sampled_only(x, draws(model, x)[1], execute="sparse")
    step(model, x, y, joint=True)
    assert all(
        torch.equal(b, dict(sampled_only.named_buffers())[name])
        for name, b in model.resnet.named_buffers()
    )


def test_the_greedy_pass_of_finetuning_sends_no_gradient():
    model = ready("finetune")
    (x, y) = batch()
    alone = copy.deepcopy(model).resnet
    loss = F.cross_entropy(alone(x, draws(model, x)[1], execute="sparse"), y)
    assert_same(
        gradients(step(model, x, y, joint=True)[0], model.resnet), gradients(loss, alone), 1e-6
    )


def two_policies(B, K, seed, shared, differ):
    """u and v [B, K] that agree in the first `shared` blocks, and elsewhere in some images."""
    u = policies(B, K, seed)
    v = policies(B, K, seed + 1)
    alike = (torch.arange(K) < shared) | (policies(B, 1, seed + 2, keep=differ) == 0)
    return u, torch.where(alike, u, v)


@given(
    seeds,
    st.integers(1, 7),
    st.integers(0, 5),
    st.sampled_from((0.0, 0.4, 1.0)),
    st.sampled_from((fast, copy.copy)),
)
def test_what_is_right_under_two_policies_is_what_is_right_under_each(
    seed, B, shared, differ, as_it_is_run
):
    model = pair((2, 1, 2), seed=seed % 5)
    (x, y) = batch(B, seed=seed)
    model.double()
    u, v = two_policies(B, 5, seed, shared, differ)
    for found, policy in zip(
        correct_under_both(as_it_is_run(model.resnet), x.double(), y, u, v), (u, v), strict=True
    ):
        assert_equal(found, model.resnet(x.double(), policy).argmax(1) == y)


def test_a_snapshot_of_the_frozen_resnet_gives_the_same_step():
    model = ready("curriculum")
    (x, y) = batch(60)
    alone = copy.deepcopy(model)
    slow, seen = step(alone, x, y)
    quick, seen_quick = step(model, x, y, frozen=fast(model.resnet))
    assert all(torch.equal(seen[name], seen_quick[name]) for name in seen)
    assert_same(gradients(quick, model.policy), gradients(slow, alone.policy), 1e-12)


@pytest.mark.parametrize(("stage", "parts"), [
    ("pretrain", {"ResNet, sampled"}), ("curriculum", {"policy network", "ResNet, sampled and greedy"}),
    ("finetune", {"policy network", "ResNet, sampled", "ResNet, greedy"}),
])  # fmt: skip
def test_a_profiler_sees_the_parts_of_a_step_by_name(stage, parts):
    model = ready(stage)
    (x, y) = batch()
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as seen:
        pretrain_step(model, x, y, 0.5, rng(0)) if stage == "pretrain" else step(
            model, x, y, joint=stage == "finetune"
        )
    assert {event.key for event in seen.key_averages() if event.is_user_annotation} == parts


def test_what_two_policies_share_runs_once():
    model = pair((2, 1, 2))
    (x, y) = batch(4)
    images = []
    for block in model.resnet.blocks:
        block.conv1.register_forward_hook(lambda _, inputs, output: images.append(len(output)))
    u = torch.ones(4, 5)
    v = torch.ones(4, 5)
    u[0, 3] = 0  # the first image's policies part behind three blocks, the others' never
    correct_under_both(model.resnet, x, y, u, v)
    assert images == [4, 4, 4, 4, 5]


def test_the_policy_network_looks_once_at_each_image_of_a_step():
    model = ready("finetune")
    (x, y) = batch()
    once = copy.deepcopy(model).policy
    once(x)
    step(model, x, y, joint=True, full_share=0.5)
    assert all(
        torch.equal(b, dict(once.named_buffers())[name]) for name, b in model.policy.named_buffers()
    )


@pytest.mark.parametrize("training", [True, False])
def test_looking_what_is_right_leaves_the_mode_as_it_was(training):
    model = pair()
    (x, y) = batch()
    model.resnet.train(training)
    correct_under(model.resnet, x, y, torch.ones(6, 3))
    assert {module.training for module in model.resnet.modules()} == {training}


def test_the_cross_entropy_reaches_only_the_resnet():
    model = ready("finetune")
    (x, y) = batch()
    policy = copy.deepcopy(model).policy
    u = draws(model, x)[1]
    loss, seen = step(model, x, y, joint=True)
    s_bounded = bound(policy(x), ALPHA)
    alone = policy_loss(s_bounded, u, seen["A"]) - BETA * entropy(s_bounded)
    assert_same(gradients(loss, model.policy), gradients(alone, policy), 1e-6)


def test_the_policy_loss_reaches_only_the_policy_network():
    model = ready("finetune")
    (x, y) = batch()

    def of_resnet(beta, gamma):
        loss, _ = policy_step(model, x, y, ALL, ALPHA, beta, gamma, rng(0), joint=True)
        return gradients(loss, model.resnet)

    assert_same(of_resnet(0.0, 0.0), of_resnet(9.0, 99.0), 1e-6)


def test_rewards_and_advantages_carry_no_gradient():
    model = ready("finetune")
    (x, y) = batch()
    _, seen = step(model, x, y, joint=True)
    assert not any(value.requires_grad for value in seen.values())


@given(seeds, masks(3), st.booleans())
def test_no_loss_term_gives_a_forced_blocks_logit_a_gradient(seed, free, joint):
    model = ready("finetune" if joint else "curriculum", seed % 100)
    (x, y) = batch(seed=seed)
    loss, _ = step(model, x, y, free, seed, joint=joint, full_share=0.5)
    weight, bias = torch.autograd.grad(loss, [model.policy.logit.weight, model.policy.logit.bias])
    assert bias[~free].count_nonzero() == weight[~free].count_nonzero() == 0


def test_a_free_blocks_logit_has_a_gradient():
    model = ready("curriculum")
    (x, y) = batch(20)
    (bias,) = torch.autograd.grad(step(model, x, y)[0], [model.policy.logit.bias])
    assert bias.count_nonzero() == 3


def test_forced_blocks_are_kept_by_the_sample_and_by_the_baseline():
    # All blocks forced: both passes are the full network, so a step can be no better than its baseline.
    model = ready("curriculum")
    (x, y) = batch(20)
    _, seen = step(model, x, y, free=~ALL)
    assert seen["A"].tolist() == [0] * 20
    assert set(seen["R"].tolist()) <= {0.0, -GAMMA}  # 1 - (3/3)^2, or the penalty


def test_a_fixed_policy_has_nothing_to_learn():
    model = ready("finetune", fixed=[1.0, 0.0, 1.0])
    (x, y) = batch()
    fixed_step(model, x, y)[0].backward()
    assert list(model.policy.parameters()) == []
    dropped = [p for name, p in model.resnet.named_parameters() if name.startswith("layer2.")]
    assert dropped
    assert all(p.grad is None or p.grad.count_nonzero() == 0 for p in dropped)


# --------------------------------------------------------------------------------- laws: randomness
@pytest.mark.parametrize("joint", [False, True])
def test_a_step_is_a_function_of_its_generator(joint):
    model = ready("finetune" if joint else "curriculum")
    (x, y) = batch(20)
    one, same, other = (
        step(copy.deepcopy(model), x, y, seed=seed, joint=joint)[0].item() for seed in (0, 0, 1)
    )
    assert one == same != other


@given(seeds, st.integers(1, 9), st.integers(1, 9), st.floats(0, 1))
def test_random_policies_are_of_0_and_1_and_repeatable(seed, B, K, share):
    one, other = (random_policies(B, K, share, rng(seed)) for _ in range(2))
    assert one.shape == (B, K)
    assert set(one.unique().tolist()) <= {0.0, 1.0}
    assert_equal(one, other)


def test_random_policies_drop_each_block_on_its_own():
    u = random_policies(40_000, 2, 1.0, rng(0)).bool()
    both = (u[:, 0] & u[:, 1]).double().mean().item()
    one = u.double().mean().item()
    # With the rate r uniform in (0.15, 1): E r = 0.575 and, the blocks being independent given r, P(both) = E r^2.
    assert one == pytest.approx(0.575, abs=0.01)
    assert both == pytest.approx((1 - 0.15**3) / 3 / 0.85, abs=0.01)


def test_pretraining_runs_each_image_under_a_policy_of_its_own():
    model = ready("pretrain")
    (x, y) = batch(12)
    u = random_policies(12, 3, 1.0, rng(4))
    expected = F.cross_entropy(copy.deepcopy(model).resnet(x, u, execute="sparse"), y)
    assert_same(pretrain_step(model, x, y, 1.0, rng(4))[0], expected, 1e-5)


# -------------------------------------------------------------------------------------- laws: order
@pytest.mark.parametrize("free_by", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("epochs", [3, 8, 20])
@pytest.mark.parametrize("warm", [0, 2])
def test_blocks_become_free_from_the_last_to_the_first_once(free_by, epochs, warm):
    settings = Settings(curriculum_epochs=epochs, warm_epochs=warm, free_by=free_by)
    freed = [free_in("curriculum", epoch, settings, 9).tolist() for epoch in range(epochs)]
    assert freed[:warm] == [[False] * 9] * warm
    counts = [sum(free) for free in freed]
    assert counts == sorted(counts)
    assert all(free == sorted(free) for free in freed)
    assert free_by == 0 or counts[-1] == 9


@pytest.mark.parametrize(("stage", "free"), [("pretrain", False), ("finetune", True)])
def test_no_block_is_free_in_pretraining_and_every_block_in_finetuning(stage, free):
    assert free_in(stage, 0, Settings(), 4).tolist() == [free] * 4


# -------------------------------------------------------------------------------------------- edges
@pytest.mark.parametrize("joint", [False, True])
def test_an_image_alone_makes_a_step(joint):
    model = ready("finetune" if joint else "curriculum")
    (x, y) = batch(1)
    loss, seen = step(model, x, y, joint=joint, full_share=1.0)
    assert torch.isfinite(loss)
    assert all(len(value) == 1 for value in seen.values())


def test_a_share_of_0_drops_nothing():
    assert random_policies(50, 9, 0.0, rng(0)).min() == 1

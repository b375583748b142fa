"""The curriculum: blocks are freed from the last to the first, and what is not free is forced on and learns nothing."""

import pytest
import torch
from helpers import alphas, images, masks, policies, rng, seeds, small_policy_net
from hypothesis import given
from hypothesis import strategies as st

from blockdrop_min import bound, entropy, force_on, free_blocks, policy_loss, sample

sizes = st.integers(1, 60)


# ------------------------------------------------------------------------------------------------------- by hand
@pytest.mark.parametrize(("epoch", "expected"), [(0, [0, 0, 0, 1]), (1, [0, 0, 1, 1]), (3, [1, 1, 1, 1]), (9, [1, 1, 1, 1])])
def test_one_more_block_is_free_in_each_epoch_the_last_one_first(epoch, expected):
    assert free_blocks(epoch, 4).int().tolist() == expected


def test_a_curriculum_of_two_epochs_frees_half_of_the_blocks_at_a_time():
    assert [free_blocks(epoch, 5, epochs=2).int().tolist() for epoch in (0, 1)] == [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]


def test_a_long_curriculum_waits_between_blocks():
    assert [int(free_blocks(epoch, 2, epochs=5).sum()) for epoch in range(5)] == [1, 1, 2, 2, 2]


def test_forcing_on_keeps_the_free_columns_and_writes_1_in_the_others():
    u = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    assert force_on(u, torch.tensor([False, True, True])).tolist() == [[1, 1, 0], [1, 0, 0]]


# ----------------------------------------------------------------------------------------------------- two roads
@given(st.integers(0, 80), sizes)
def test_without_a_length_the_last_t_plus_1_blocks_are_free(epoch, K):
    assert free_blocks(epoch, K).tolist() == [k >= K - (epoch + 1) for k in range(K)]


@given(sizes)
def test_a_curriculum_of_K_epochs_is_the_papers(K):
    for epoch in range(K + 1):
        assert torch.equal(free_blocks(epoch, K, epochs=K), free_blocks(epoch, K))


# ---------------------------------------------------------------------------------------------------------- laws
@given(sizes, st.none() | st.integers(1, 80))
def test_every_block_is_freed_once_in_order_and_stays_free(K, epochs):
    free = torch.stack([free_blocks(epoch, K, epochs) for epoch in range(epochs or K)]).int()  # [epochs, K]
    assert (free.diff(dim=0) >= 0).all()  # once free, always free
    assert (free.diff(dim=1) >= 0).all()  # a block is free only if all later ones are
    assert free[-1].all()


@given(sizes, st.integers(1, 80))
def test_a_curriculum_with_a_length_is_spread_evenly(K, epochs):
    freed = torch.tensor([0] + [int(free_blocks(epoch, K, epochs).sum()) for epoch in range(epochs)]).diff()
    assert freed.max() - freed.min() <= 1
    assert freed[0] >= 1


@given(sizes, st.integers(1, 80), st.integers(0, 20))
def test_after_its_end_all_blocks_are_free(K, epochs, later):
    assert free_blocks(epochs - 1 + later, K, epochs).all()


@given(st.integers(1, 12).flatmap(masks), st.integers(0, 5), seeds)
def test_forcing_on_touches_forced_columns_only(free, B, seed):
    u = policies(B, len(free), seed)
    before, forced = u.clone(), force_on(u, free)
    assert torch.equal(u, before)
    assert torch.equal(forced[:, free], u[:, free])
    assert (forced[:, ~free] == 1).all()


@given(st.integers(2, 6), st.data(), alphas, seeds)
def test_at_no_epoch_does_any_loss_term_give_a_forced_blocks_logit_a_gradient(K, data, alpha, seed):
    epoch = data.draw(st.integers(0, K - 1))
    free, policy = free_blocks(epoch, K), small_policy_net(K, seed=seed)
    s_bounded = bound(policy(images(2, seed=seed)), alpha)
    u = force_on(sample(s_bounded, rng(seed)), free)
    for term in (policy_loss(s_bounded, u, torch.tensor([1.0, -2.0]), free), entropy(s_bounded, free)):
        row = torch.autograd.grad(term, policy.logit.weight, retain_graph=True)[0].any(1)  # [K]
        assert not row[~free].any()


# ---------------------------------------------------------------------------------------------------------- edges
@given(sizes, st.integers(1, 80))
def test_the_mask_is_bool_and_as_long_as_there_are_blocks(K, epochs):
    free = free_blocks(0, K, epochs)
    assert (free.dtype, free.shape) == (torch.bool, (K,))


@pytest.mark.parametrize("arguments", [(-1, 4), (0, 0), (0, 4, 0), (0, -3), (2, 4, -1)])
def test_an_impossible_epoch_or_size_is_refused(arguments):
    epoch, K = arguments[:2]
    with pytest.raises(ValueError, match=f"epoch {epoch}, num_blocks {K}, epochs .*; they must be at least 0, 1 and 1"):
        free_blocks(*arguments)


def test_a_mask_on_the_cpu_forces_policies_on_another_device():
    assert force_on(torch.zeros(2, 3, device="meta"), torch.tensor([False, True, True])).is_meta


def test_forcing_on_refuses_a_policy_without_images():
    with pytest.raises(ValueError, match=r"free is torch.bool \[3\]; it must be bool \[3\]"):
        force_on(torch.ones(3), torch.tensor([False, True, True]))


@pytest.mark.parametrize("free", [torch.ones(3), torch.ones(4, dtype=torch.bool), torch.ones(2, 3, dtype=torch.bool)])
def test_forcing_on_refuses_a_mask_of_another_shape_or_dtype(free):
    with pytest.raises(ValueError, match=r"free is torch.* it must be bool \[3\]"):
        force_on(torch.ones(2, 3), free)

"""static_policy: one policy for all images, the paper's heuristics."""

import pytest
import torch
from helpers import assert_equal, rng, seeds
from hypothesis import given
from hypothesis import strategies as st

from blockdrop_min import static_policy

KINDS = ("first", "random", "distribute")
segments = st.lists(st.integers(1, 20), min_size=1, max_size=5)


def test_a_static_policy_by_hand():
    assert static_policy("distribute", 5, (3, 3, 3)).tolist() == [1, 1, 0, 1, 1, 0, 1, 0, 0]


@pytest.mark.parametrize("kind", KINDS)
@given(segments=segments, data=st.data(), seed=seeds)
def test_a_static_policy_keeps_exactly_as_many_blocks_as_asked(kind, segments, data, seed):
    keep = data.draw(st.integers(0, sum(segments)))
    u = static_policy(kind, keep, segments, rng(seed))
    assert u.dtype == torch.float32
    assert sorted(u.tolist()) == [0.0] * (sum(segments) - keep) + [1.0] * keep
    if kind == "first":
        assert u[:keep].all()


@given(segments, st.data())
def test_distribute_keeps_as_many_first_blocks_in_each_segment_unless_one_is_full(segments, data):
    keep = data.draw(st.integers(0, sum(segments)))
    parts = static_policy("distribute", keep, segments).split(segments)
    most = max(int(part.sum()) for part in parts)
    for i, part in enumerate(parts):
        assert part.all() or part.sum() >= most - 1, f"segment {i}"
        assert (part.diff() <= 0).all(), f"segment {i}"


def test_random_is_reproducible_and_keeps_every_block_equally_often():
    g = rng(0)
    N = 3000
    drawn = [static_policy("random", 2, (3, 2), g) for _ in range(N)]
    assert_equal(static_policy("random", 2, (3, 2), rng(0)), drawn[0])
    kept = torch.stack(drawn).mean(0)
    assert ((kept - 0.4).abs() <= 4.5 * (0.4 * 0.6 / N) ** 0.5).all()


@pytest.mark.parametrize(
    ("kind", "keep", "expected"),
    [(kind, -1, "keep is -1; it must lie between 0 and K = 9") for kind in KINDS]
    + [(kind, 10, "keep is 10; it must lie between 0 and K = 9") for kind in KINDS]
    + [("last", 1, 'kind is \'last\'; it must be "first", "random" or "distribute"')],
)
def test_a_static_policy_that_does_not_exist_is_refused(kind, keep, expected):
    with pytest.raises(ValueError, match=expected):
        static_policy(kind, keep, (3, 3, 3))

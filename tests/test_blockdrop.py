"""BlockDrop, the pair of networks, and FixedPolicy, in the place of a policy network."""

import copy
import functools
import re

import numpy as np
import pytest
import torch
from helpers import (
    Given,
    assert_equal,
    assert_same,
    cases,
    images,
    images_met,
    pictures,
    policies,
    rng,
    seeds,
    small_policy_net,
    small_resnet,
)
from hypothesis import given
from PIL import Image

from blockdrop_min import BlockDrop, FixedPolicy, greedy

MEAN = (0.5, 0.4, 0.3)
STD = (0.2, 0.3, 0.4)


def pair(seed=0, half_size=False, **options):
    """A small random BlockDrop of three blocks: float64, eval mode."""
    policy = small_policy_net(3, half_size=half_size, seed=seed + 1)
    return BlockDrop(small_resnet(seed=seed), policy, **options).double().eval()


def pixels(count):
    return torch.randint(256, (count, 3, 9, 9), generator=rng(0), dtype=torch.uint8)


# -------------------------------------------------------------------------------- the pair, by hand
def test_uint8_images_are_scaled_to_1_and_normalised_by_channel():
    model = pair(mean=(0.0, 0.5, 0.2), std=(1.0, 0.5, 0.4))
    x = model.prepare(torch.tensor([0, 255, 51], dtype=torch.uint8).view(1, 3, 1, 1))
    # (1 - 0.5) / 0.5 and (51 / 255 - 0.2) / 0.4
    assert x.flatten().tolist() == pytest.approx([0, 1, 0], abs=1e-6)
    floats = model.prepare(torch.tensor([5.0, 1.0, 0.2]).view(1, 3, 1, 1))  # are not scaled
    assert floats.flatten().tolist() == pytest.approx([5, 1, 0], abs=1e-6)


def test_the_model_keeps_a_tie():
    model = BlockDrop(small_resnet(), Given(torch.tensor([[0.5, 0.49, 0.51]]))).double().eval()
    assert model(pictures(1))[1].tolist() == [[1, 0, 1]]


# ------------------------------------------------------------------------------ the pair, two roads
@given(cases(families=("cifar",)))
def test_the_logits_are_those_of_the_resnet_under_the_greedy_policy(case):
    policy = small_policy_net(case.K, seed=case.seed)
    x = case.x.sigmoid()
    logits, u = BlockDrop(case.net, policy).eval()(x)
    assert_equal(u, greedy(policy(x)))
    assert_same(logits, case.net(x, u, "masked"))


@pytest.mark.parametrize("how", [{"mean": MEAN, "std": STD}, {"mean": MEAN}, {"std": STD}])
def test_both_networks_see_the_images_normalised_by_what_is_given(how):
    model = pair(**how).float()
    x = pixels(4)
    prepared = x / 255 - torch.tensor(how.get("mean", (0, 0, 0)))[:, None, None]
    prepared = prepared / torch.tensor(how.get("std", (1, 1, 1)))[:, None, None]
    logits, u = model(x)
    assert_equal(u, greedy(model.policy(prepared)))
    assert_same(logits, model.resnet(prepared, u), 1e-4)
    with pytest.raises(ValueError, match=r"images of torch.float32 are out of range"):
        model(prepared * 100)


@pytest.mark.parametrize("training", [False, True])
def test_a_block_meets_the_images_that_keep_it_in_use_and_all_images_in_training(training):
    model = pair().train(training)
    counts = images_met(model.resnet)
    x = pictures(6)
    logits, u = model(x)
    kept = u.sum(0).tolist()
    assert set(kept) - {0, 6}
    assert counts == ([6] * 3 if training else [count for count in kept if count])
    assert_same(logits, model.resnet(x, u, "masked"))


# ----------------------------------------------------------------------------------- the pair, laws
def test_images_move_to_channels_last_and_may_have_any_memory_format():
    model = pair()
    x = pictures(4)
    assert model.prepare(x).is_contiguous(memory_format=torch.channels_last)
    assert_same(model(x.contiguous(memory_format=torch.channels_last)), model(x))


@pytest.mark.parametrize("how", ["state_dict", "assigned", "whole"])
def test_a_model_saved_and_loaded_as_pytorch_teaches_it_gives_the_same_answers(how, tmp_path):
    model = pair(mean=MEAN, std=STD).float()
    x = pixels(4)
    path = tmp_path / "model.pt"
    if how == "whole":
        torch.save(model, path)
        loaded = torch.load(path, weights_only=False)
    else:
        torch.save(model.state_dict(), path)
        loaded = pair(seed=5).float()
        loaded.load_state_dict(torch.load(path, weights_only=True), assign=how == "assigned")
    assert_equal(loaded(x), model(x))
    with pytest.raises(ValueError, match="out of range"):  # it knows that it normalises
        loaded(x.float())


def test_a_state_dict_without_mean_and_std_loads_and_leaves_them():
    model = pair(mean=MEAN, std=STD)
    others = {name: t for name, t in pair(seed=5).state_dict().items() if "." in name}
    before = dict(others)
    model.load_state_dict(others)
    assert others == before
    assert_equal(model(pixels(4)), pair(seed=5, mean=MEAN, std=STD)(pixels(4)))


def test_the_images_given_stay_as_they_are():
    x = pictures(3)
    pair(mean=MEAN, std=STD)(x)
    assert_equal(x, pictures(3))


def test_a_model_takes_images_of_the_cpu_wherever_it_is():
    model = BlockDrop(small_resnet(), FixedPolicy(torch.ones(3)), MEAN, STD).to("meta")
    assert model.prepare(model.check(pixels(2)).to(model.mean.device)).is_meta


# ------------------------------------------------------------------- the images that the pair takes
def test_what_counts_of_images_is_their_values():
    x = pixels(4)
    model = pair().float()
    expected = model(x)
    for dtype in (torch.int16, torch.int32, torch.int64):
        assert_equal(model(x.to(dtype)), expected)
    assert_equal(model(x.numpy()), expected)
    assert_equal(model(x.float() / 255), expected)
    assert_equal(model((x.float() / 255).double()), expected)  # as NumPy makes them
    assert_equal(model(x[:, :1]), model(x[:, :1].repeat(1, 3, 1, 1)))


def changed(x, value):
    x = x.clone()
    x[1, 2, 3, 4] = value
    return x


FLOATS = torch.full((2, 3, 9, 9), 0.5)
INTEGERS = torch.zeros(2, 3, 9, 9, dtype=torch.int64)
KINDS = ("bool", "complex64", "int8", "uint16", "uint32", "uint64", "float8_e5m2")
REFUSED = {  # what is given -> what is said of it
    **{
        f"of shape {shape}": (torch.rand(shape), f"are torch.float32 {list(shape)}")
        for shape in [(3, 9, 9), (1, 9, 9, 3), (2, 4, 9, 9), (2, 2, 9, 9), (1, 3, 0, 9)]
    },
    **{kind: (INTEGERS.to(getattr(torch, kind)), f"are torch.{kind}") for kind in KINDS},
    **{
        f"a float of {value}": (changed(FLOATS, value), "of torch.float32 are out of range")
        for value in (-0.01, 1.01, torch.nan, torch.inf)
    },
    **{
        f"an integer of {value}": (changed(INTEGERS, value), "of torch.int64 are out of range")
        for value in (-1, 256)
    },
    "a picture": (Image.new("RGB", (9, 9)), "are of type Image"),
    "pictures": ([Image.new("RGB", (9, 9))], "are of type list"),
    "nothing": (None, "are of type NoneType"),
    "a name": ("photo.jpg", "are of type str"),
    "foreign bytes": (np.zeros((1, 3, 9, 9), ">f4"), "are of type ndarray"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_batch_of_images_is_refused_in_one_line_that_names_load_image(case):
    x, expected = REFUSED[case]
    expected = rf"^images {re.escape(expected)}[^\n]*; they must be \[B, 3, .*load_image[^\n]*$"
    with pytest.raises(ValueError, match=expected):
        pair(mean=MEAN)(x)


def test_images_are_large_enough_for_the_policy_network_to_halve_them():
    with pytest.raises(ValueError, match="of 2 x 2 pixels or more"):
        pair(half_size=True)(pictures(1, 2, 1))
    pair(half_size=True)(pictures(1, 2, 2))
    pair()(pictures(1, 1, 1))


def test_a_pair_that_does_not_normalise_takes_floats_as_they_are():
    model = BlockDrop(small_resnet(), small_policy_net(3)).eval()
    x = images(2)  # of both signs
    s = model.policy(x)
    assert_same(model(x)[0], model.resnet(x, greedy(s), execute="sparse"))


def test_a_batch_without_images_gives_no_logits_and_no_policies():
    logits, u = pair()(pictures(0))
    assert logits.shape == (0, 5)
    assert u.shape == (0, 3)


@pytest.mark.parametrize("policy", [small_policy_net(4), FixedPolicy(torch.ones(4))])
def test_networks_that_disagree_in_K_are_refused(policy):
    expected = "the ResNet has 3 blocks but the policy network decides on 4"
    with pytest.raises(ValueError, match=expected):
        BlockDrop(small_resnet(), policy)


# -------------------------------------------------------------------------- taken to other programs
def exported(model, x, strict=False):
    dynamic = ({0: torch.export.Dim("count", min=2, max=64)},)
    return torch.export.export(model, (x,), dynamic_shapes=dynamic, strict=strict).module()


TAKEN = {  # what is taken elsewhere -> how
    "pair exported": exported,
    "policy network exported": exported,
    "one policy exported": exported,
    "pair exported strictly": functools.partial(exported, strict=True),
    "pair traced": lambda model, x: torch.jit.trace(model, (x,), check_trace=False),
    "pair compiled": lambda model, x: torch.compile(model, backend="eager"),
}


@pytest.mark.filterwarnings("ignore")  # a tracer warns of each check of a shape
@pytest.mark.parametrize("case", TAKEN)
def test_taken_elsewhere_a_model_has_the_same_answers_for_batches_of_any_size(case):
    model, x = pair().float(), pixels(7)
    assert len(model(x)[1].unique(dim=0)) > 1
    if "policy network" in case:
        model, x = model.policy, model.prepare(x)
    if "one policy" in case:
        model.policy = FixedPolicy(torch.tensor([1, 0, 1]))
    there = TAKEN[case](copy.deepcopy(model), x[:3])
    for some in (x, x[2:4]):
        assert_same(there(some), model(some), 1e-5)


# -------------------------------------------------------------------------------------- FixedPolicy
@given(cases(families=("cifar",)), seeds)
def test_a_fixed_policy_is_the_same_for_every_image(case, seed):
    u = policies(1, case.K, seed)[0]
    x = case.x.sigmoid()
    logits, used = BlockDrop(case.net, FixedPolicy(u)).eval()(x)
    assert_equal(used.double(), u.expand(case.B, -1))
    assert_same(logits, case.net(x, u))


def test_a_fixed_policy_has_nothing_to_learn_and_is_saved():
    fixed = FixedPolicy(torch.tensor([1, 0, 1]))
    assert list(fixed.parameters()) == []
    assert fixed.state_dict()["u"].tolist() == [1, 0, 1]
    assert fixed.num_blocks == 3

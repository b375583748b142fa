"""Skip semantics: what it means to keep and to drop a block."""

import re
from copy import deepcopy

import pytest
import torch
import torchvision
from helpers import (
    EXECUTIONS,
    Reference,
    assert_equal,
    assert_same,
    cases,
    few,
    gradient,
    gradients,
    images,
    images_met,
    policies,
    randomise,
    rng,
    seeds,
    small_resnet,
    state,
    weighted_sum,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from blockdrop_min import MaskedResNet, masked_resnet, resnet
from blockdrop_min.masked_resnet import BasicBlock, PoolAndPad, kept_images, run_masked, run_sparse

both = pytest.mark.parametrize("execute", EXECUTIONS)
in_both_families = pytest.mark.parametrize("family", ["cifar", "imagenet"])
in_both_modes = pytest.mark.parametrize("training", [False, True])


def law(**drawn):
    """Decorates a law of both executions, tried on what is drawn."""
    return lambda test: both(few(given(**drawn)(test)))


def run_block(execute, block, x, kept):
    """One block, run on the images at `kept`, a list of indices."""
    kept = torch.tensor(kept, dtype=torch.int64)
    if execute == "sparse":
        return run_sparse(block, x, kept)
    return run_masked(block, x, torch.zeros(len(x)).index_fill(0, kept, 1).bool())


# ------------------------------------------------------------------------------------------ by hand
def one_block(F_of_x):
    """A network of one block with F(x) = F_of_x everywhere, and logits = the channel means."""
    net = small_resnet((1,), (3,), 3)
    net.conv1.weight.data.zero_()
    net.bn1.running_mean.zero_()
    block = net.blocks[0]
    block.bn2.weight.data.zero_()
    block.bn2.bias.data.fill_(F_of_x)
    net.bn1.bias.data.copy_(torch.tensor([1.0, 2.0, 3.0]))  # so the block's input is 1, 2, 3
    net.fc.weight.data.copy_(torch.eye(3))
    net.fc.bias.data.zero_()
    return net


@both
def test_a_kept_block_gives_relu_of_shortcut_plus_F(execute):
    logits = one_block(F_of_x=-2.0)(images(1), torch.ones(1, 1), execute)
    assert logits.tolist() == [[0.0, 0.0, 1.0]]  # relu(1 - 2), relu(2 - 2), relu(3 - 2)


@both
def test_a_dropped_block_gives_its_shortcut(execute):
    logits = one_block(F_of_x=-2.0)(images(1), torch.zeros(1, 1), execute)
    assert logits.tolist() == [[1.0, 2.0, 3.0]]


@both
def test_each_image_of_a_batch_follows_its_own_policy(execute):
    logits = one_block(F_of_x=-2.0)(images(3), torch.tensor([[1.0], [0.0], [1.0]]), execute)
    assert logits.tolist() == [[0.0, 0.0, 1.0], [1.0, 2.0, 3.0], [0.0, 0.0, 1.0]]


@both
def test_a_negative_shortcut_passes_a_dropped_block_without_relu(execute):
    net = small_resnet((1, 1), (3, 3), 3, "imagenet")
    norm = net.blocks[1].downsample[1]
    norm.weight.data.zero_()
    norm.bias.data.fill_(-7.0)
    net.fc.weight.data.copy_(torch.eye(3))
    net.fc.bias.data.zero_()
    assert net(images(1), torch.tensor([1, 0]), execute).tolist() == [[-7.0, -7.0, -7.0]]


def test_the_cifar_shortcut_averages_four_pixels_and_appends_zero_channels():
    x = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]])
    assert PoolAndPad(2, 2)(x).tolist() == [[[[3.0]], [[0.0]], [[0.0]]]]


def test_the_cifar_shortcut_of_an_odd_side_averages_the_pixels_there_are():
    x = torch.tensor([[[[1.0, 3.0, 5.0]]]])
    assert PoolAndPad(2, 0)(x).flatten().tolist() == [2.0, 5.0]


@pytest.mark.parametrize(("dtype", "device"), [("bfloat16", "cpu"), ("float32", "meta")])
def test_the_cifar_shortcut_keeps_to_its_inputs_dtype_and_device(dtype, device):
    x = torch.ones(1, 2, 4, 4, dtype=getattr(torch, dtype), device=device)
    found = PoolAndPad(2, 3)(x)
    assert (found.shape, found.dtype, found.device) == ((1, 5, 2, 2), x.dtype, x.device)


def test_a_shortcut_without_downsample_is_its_input_itself():
    x = images(1)
    assert BasicBlock(3, 3, 1, None).shortcut(x) is x


def test_a_shortcut_with_downsample_is_what_that_gives_negative_numbers_included():
    block = BasicBlock(3, 4, 2, nn.Conv2d(3, 4, 1, 2).double())
    x = images(2)
    assert (block.shortcut(x) < 0).any()
    assert_same(block.shortcut(x), block.downsample(x))


def test_the_kept_images_are_listed_block_by_block():
    keep = torch.tensor([[1, 0, 1, 0], [1, 1, 0, 0]]).bool()
    assert [kept.tolist() for kept in kept_images(keep, "cpu")] == [[0, 1], [1], [0], []]


@pytest.mark.parametrize("depth", [8, 14, 20, 32, 44, 56, 110])
def test_a_cifar_resnet_of_6n_plus_2_layers_has_3n_blocks(depth):
    with torch.device("meta"):
        net = resnet(depth)
    assert net.num_blocks == len(net.blocks) == (depth - 2) // 2
    n = net.num_blocks // 3  # a segment: the order in which an image meets them
    assert [block.conv2.out_channels for block in net.blocks] == [16] * n + [32] * n + [64] * n


def test_convolutions_start_from_kaimings_normal_distribution_by_fan_out():
    for name, p in resnet(14).named_parameters():
        if p.dim() == 4:
            fan_out = p.shape[0] * p.shape[2] * p.shape[3]
            # The relative standard error of a standard deviation is 1 / sqrt(2 n).
            error = 4.5 / (2 * p.numel()) ** 0.5
            assert p.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=error), name


# ---------------------------------------------------------------------------------------- two roads
@in_both_modes
@few
@given(data=st.data())
def test_all_ones_is_the_plain_resnet(training, data):
    case = data.draw(cases(training=training))
    expected = Reference(case.net, training).plain(case.x)
    assert_same(case.net(case.x, torch.ones(case.B, case.K)), expected)


@pytest.fixture(params=[("BasicBlock", 1), ("BasicBlock", 2), ("Bottleneck", 1), ("Bottleneck", 2)])
def twins(request):
    """A block of torchvision's, one of ours with its weights, and its input."""
    name, stride = request.param
    channels = getattr(masked_resnet, name).expansion * 4
    down = None
    if stride == 2:
        convolution = nn.Conv2d(channels, channels, 1, stride, bias=False)
        down = nn.Sequential(convolution, nn.BatchNorm2d(channels))
    theirs = getattr(torchvision.models.resnet, name)(channels, 4, stride, down)
    randomise(theirs, 0).double().eval()
    ours = getattr(masked_resnet, name)(channels, 4, stride, deepcopy(down)).double().eval()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours, torch.randn(3, channels, 7, 7, generator=rng(1), dtype=torch.float64)


def test_the_two_paths_of_a_block_add_up_to_torchvisions(twins):
    theirs, ours, x = twins
    residual = ours.residual(x)
    assert_same(torch.relu(ours.shortcut(x) + residual), theirs(x))
    assert (residual < 0).any(), "F(x) itself has no ReLU at its end"


@both
def test_a_block_is_torchvisions(execute, twins):
    theirs, ours, x = twins
    assert_same(run_block(execute, ours, x, [0, 1, 2]), theirs(x))
    assert_same(ours(x), theirs(x))


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_torchvisions_weights_give_torchvisions_logits(depth):
    with torch.device("meta"):
        theirs = getattr(torchvision.models, f"resnet{depth}")(num_classes=7)
        ours = resnet(depth, 7, "imagenet")
    theirs = randomise(theirs.to_empty(device="cpu"), depth).eval()
    ours.load_state_dict(theirs.state_dict(), assign=True)
    x = images(2, 64).float()
    with torch.no_grad():
        expected = theirs(x)
        actual = ours.eval()(x)
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()


@both
@given(case=cases())
def test_a_batch_is_a_slow_loop_over_images_and_blocks_with_an_if(execute, case):
    assert_same(case.net(case.x, case.u, execute), Reference(case.net).slow(case.x, case.u))


@law(case=cases())
def test_every_gradient_is_that_of_the_slow_loop(execute, case):
    expected = gradients(weighted_sum(Reference(case.net).slow(case.x, case.u)), case.net)
    actual = gradients(weighted_sum(case.net(case.x, case.u, execute)), case.net)
    assert_same(actual, expected, 1e-8)


@given(cases())
def test_masked_is_sparse(case):
    assert_same(case.net(case.x, case.u, "masked"), case.net(case.x, case.u, "sparse"))


@in_both_modes
@law(data=st.data())
def test_dropping_a_block_is_a_network_built_without_it(execute, training, data):
    case = data.draw(cases(min_blocks=2, training=training))
    i = data.draw(st.integers(0, len(case.net.segments) - 1))
    # Not block 0 of a segment, which has more to it than F: its shortcut.
    j = data.draw(st.integers(1, case.net.segments[i] - 1))
    u = torch.ones(case.K)
    u[sum(case.net.segments[:i]) + j] = 0
    without = deepcopy(case.net)
    del without.layers[i][j]
    without.segments = tuple(count - (index == i) for index, count in enumerate(case.net.segments))
    assert_same(case.net(case.x, u, execute), Reference(without, training).plain(case.x))


@both
@given(case=cases(training=True))
def test_training_normalises_by_the_images_that_meet_a_block_all_if_masked(execute, case):
    ref = Reference(case.net, training=True)
    x = ref.stem(case.x)
    for k, name in enumerate(ref.names):
        keep = case.u[:, k].bool()
        out = ref.shortcut(x, name)
        if keep.any() and execute == "sparse":
            kept = torch.relu(out[keep] + ref.residual(x[keep], name))
        else:
            kept = torch.relu(out + ref.residual(x, name))[keep]
        x = out.index_put((keep,), kept)
    assert_same(case.net(case.x, case.u, execute), ref.head(x))


@given(cases())
def test_layers_called_one_after_the_other_are_the_network(case):
    x = case.net.stem(case.x)
    for layer in case.net.layers:
        x = layer(x)
    assert_same(case.net.head(x), case.net(case.x))


# --------------------------------------------------------------------------------------------- laws
@law(case=cases(min_batch=2), pixel=st.sampled_from([5.0, torch.inf, torch.nan]))
def test_an_images_logits_do_not_depend_on_the_pixels_and_policies_of_others(execute, case, pixel):
    x = torch.cat([case.x[:1], torch.full_like(case.x[1:], pixel)])
    u = torch.cat([case.u[:1], 1 - case.u[1:]])
    assert_same(case.net(x, u, execute)[0], case.net(case.x, case.u, execute)[0])


def poisoned(net, k, value):
    """A copy with `value` in every weight of F of block k; its shortcut stays as it is."""
    net = deepcopy(net)
    for name, p in net.blocks[k].named_parameters():
        if not name.startswith("downsample"):
            p.data.fill_(value)
    return net


bad_weights = st.sampled_from([torch.nan, torch.inf, -torch.inf])


@in_both_modes
@law(data=st.data(), value=bad_weights)
def test_inf_and_nan_in_a_block_that_all_drop_do_not_reach_the_logits(
    execute, training, data, value
):
    case = data.draw(cases(training=training))
    k = data.draw(st.integers(0, case.K - 1))
    case.u[:, k] = 0
    bad = poisoned(case.net, k, value)
    logits, expected = (net(case.x, case.u, execute) for net in (bad, case.net))
    assert_same(logits, expected)
    if execute == "sparse":  # nor the gradients
        expected = gradients(weighted_sum(expected), case.net)
        assert_same(gradients(weighted_sum(logits), bad), expected)


@law(data=st.data(), value=bad_weights)
def test_inf_and_nan_in_a_block_that_one_image_keeps_stay_with_that_image(execute, data, value):
    case = data.draw(cases(min_batch=2))
    k = data.draw(st.integers(0, case.K - 1))
    case.u[0, k] = 1
    case.u[1:, k] = 0
    bad = poisoned(case.net, k, value)
    x = case.x.requires_grad_()
    expected = case.net(x, case.u, execute)[1:]
    found = bad(x, case.u, execute)[1:]
    assert_same(found, expected)
    if execute == "sparse":  # pixels of the others, too
        expected = gradient(weighted_sum(expected), x)[1:]
        assert_same(gradient(weighted_sum(found), x)[1:], expected)


@in_both_modes
@in_both_families
@law(segments=st.lists(st.integers(1, 3), min_size=1, max_size=3), seed=seeds)
def test_gradients_reach_exactly_the_weights_of_kept_blocks(
    execute, training, family, segments, seed
):
    net = small_resnet(segments, [6] * len(segments), family=family, seed=seed).train(training)
    u = policies(2, net.num_blocks, seed)
    x = images(2, 33, seed=seed)  # so many pixels that no ReLU is 0 for all of them
    loss = weighted_sum(net(x, u, execute))
    for k, block in enumerate(net.blocks):
        for name, found in gradients(loss, block).items():
            if not name.startswith("downsample"):
                assert bool(found.any()) == bool(u[:, k].any()), f"block {k}, {name}"


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", "float16", "float32"])
@law(case=cases())
def test_a_policy_may_have_any_dtype_be_a_list_and_hold_for_all_images(execute, dtype, case):
    u = case.u.to(getattr(torch, dtype))
    expected = case.net(case.x, case.u, execute)
    assert_equal(case.net(case.x, u, execute), expected)
    assert_equal(case.net(case.x, u.tolist(), execute), expected)
    expected = case.net(case.x, u[:1].expand(case.B, -1), execute)
    assert_equal(case.net(case.x, u[0], execute), expected)
    all_ones = case.net(case.x, torch.ones(case.K), execute)
    assert_equal(case.net(case.x, execute=execute), all_ones)


@both
def test_a_policy_on_the_cpu_serves_a_network_on_another_device(execute):
    net = small_resnet(family="imagenet").to("meta")
    u = torch.tensor([[0, 1, 0], [1, 1, 0]])
    assert net(images(2).to("meta"), u, execute).is_meta


@pytest.mark.parametrize("recorded", [False, True])
@law(case=cases())
def test_the_arguments_stay_as_they_are(execute, recorded, case):
    before = case.x.clone(), case.u.clone()
    weights = state(case.net)
    with torch.set_grad_enabled(recorded):
        case.net(case.x, case.u, execute)
    assert_equal((case.x, case.u), before)
    assert_equal(state(case.net), weights)


@both
@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("kept", [[], [0, 2], [0, 1, 2]])
@pytest.mark.parametrize("k", [0, 1])  # the shortcut of block 1 is a downsample
def test_a_block_leaves_its_input_as_it_was(execute, recorded, kept, k):
    block = small_resnet((1, 1), (3, 4)).blocks[k]
    x = images(3, 5)
    expected = run_block(execute, block, x, kept).detach()
    with torch.set_grad_enabled(recorded):
        assert_equal(run_block(execute, block, x, kept).detach(), expected)
    assert_equal(x, images(3, 5))


@torch.no_grad()
def test_without_gradients_kept_images_are_put_back_in_place(monkeypatch):
    net = small_resnet((1,), (3,))
    x = images(3, 5)
    found = run_sparse(net.blocks[0], x, torch.tensor([0, 2]), overwrite=True)
    assert_equal(found, run_block("sparse", net.blocks[0], images(3, 5), [0, 2]))
    assert found.data_ptr() == x.data_ptr()
    asked = []

    def watched(block, x, kept, overwrite=False):
        asked.append(overwrite)
        return run_sparse(block, x, kept, overwrite)

    monkeypatch.setattr(masked_resnet, "run_sparse", watched)
    for recorded in (False, True):
        with torch.set_grad_enabled(recorded):
            net(x, torch.tensor([[1], [0], [1]]), "sparse")
    assert asked == [True, False]


@both
@pytest.mark.parametrize("kept", [[], [0, 2], [0, 1, 2]])
def test_a_shortcut_runs_once_a_batch(execute, kept):
    block = small_resnet((1, 1), (3, 4), family="imagenet").train().blocks[1]
    run_block(execute, block, images(3, 5), kept)
    assert block.downsample[1].num_batches_tracked == 1
    block(images(3, 5))
    assert block.downsample[1].num_batches_tracked == 2


# -------------------------------------------------------------------------------------------- hooks
@law(case=cases())
def test_hooks_on_layers_and_blocks_see_their_maps(execute, case):
    expected = {}
    x = case.net.stem(case.x)
    keep = iter(case.u.bool().unbind(1))
    for layer in case.net.layers:
        first = x
        for block in layer:
            expected[block] = x, run_masked(block, x, next(keep))
            x = expected[block][1]
        expected[layer] = first, x
    seen = {}
    for module in expected:
        module.register_forward_hook(lambda module, x, y: seen.update({module: (x[0], y)}))
    case.net(case.x, case.u, execute)
    assert_same(seen, expected)


@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook"])
@pytest.mark.parametrize("place", ["maxpool", "layer1", "layer1.1", "layer2.0.downsample"])
def test_what_a_hook_holds_is_not_overwritten(kind, place):
    net = small_resnet((2, 2), (3, 4), family="imagenet")
    held = []

    def hold(module, inputs, output=None):
        held.extend((x, x.clone()) for x in (inputs[0], output) if x is not None)

    getattr(net.get_submodule(place), kind)(hold)
    with torch.no_grad():
        net(images(3), torch.tensor([[1, 0, 1, 1], [0, 1, 0, 1], [1, 1, 1, 0]]), "sparse")
    for x, before in held:
        assert_equal(x, before)


@both
def test_backward_hooks_on_layers_and_blocks_see_the_gradients_of_their_maps(execute):
    net = small_resnet((2, 2), (3, 4))
    maps, seen = {}, {}
    for module in [*net.layers, *net.blocks]:
        module.register_full_backward_hook(lambda module, _, to: seen.update({module: to[0]}))
        module.register_forward_hook(lambda module, _, output: maps.update({module: output}))
    loss = weighted_sum(net(images(3), policies(3, 4, keep=0.7), execute))
    expected = {module: gradient(loss, output) for module, output in maps.items()}
    loss.backward()
    assert_same(seen, expected)


# ------------------------------------------------------------------------------------------- memory
@pytest.mark.parametrize("recorded", [False, True])
@law(data=st.data())
def test_convolutions_of_a_channels_last_network_meet_channels_last_maps(execute, recorded, data):
    case = data.draw(cases(min_batch=2))
    net = case.net.to(memory_format=torch.channels_last)
    found = {}
    for name, layer in net.named_modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(
                lambda layer, inputs, output, name=name: found.update({name: inputs[0]})
            )
    with torch.set_grad_enabled(recorded):
        logits = net(case.x.contiguous(memory_format=torch.channels_last), case.u, execute)
    assert_same(logits, Reference(net).slow(case.x, case.u))
    for name, maps in found.items():
        assert maps.is_contiguous(memory_format=torch.channels_last), name


@both
def test_under_no_grad_no_block_records_what_a_gradient_would_need(execute):
    net = small_resnet()
    recorded = []
    for block in net.blocks:
        block.conv1.register_forward_hook(
            lambda layer, inputs, output: recorded.append(output.requires_grad)
        )
    with torch.no_grad():
        net(images(2), torch.tensor([[1, 0, 1], [1, 1, 0]]), execute)
    assert recorded == [False] * 3


@pytest.mark.parametrize(("execute", "met"), [("masked", [3, 3, 3]), ("sparse", [3, 2])])
def test_a_block_meets_every_image_when_masked_and_those_that_keep_it_when_sparse(execute, met):
    net = small_resnet()
    counts = images_met(net)
    net(images(3), torch.tensor([[1, 0, 1], [1, 0, 0], [1, 0, 1]]), execute)
    assert counts == met


def test_sparse_execution_of_a_block_that_no_image_keeps_leaves_its_statistics_alone():
    net = small_resnet().train()
    before = state(net.blocks[1])
    net(images(4), torch.tensor([1, 0, 1]), "sparse")
    assert_equal(state(net.blocks[1]), before)


# -------------------------------------------------------------------------------------------- edges
@both
@in_both_families
def test_bf16_autocast_stays_within_its_precision(execute, family):
    net = small_resnet(family=family).float()
    x = images(3).float()
    u = policies(3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        logits = net(x, u, execute)
    expected = net(x, u)
    # bf16 has 8 bits; a few layers lose three.
    assert (logits - expected).abs().max() < 2**-5 * expected.abs().max()


@both
@in_both_families
def test_a_batch_without_images_gives_no_logits(execute, family):
    assert small_resnet(family=family)(images(0), torch.ones(0, 3), execute).shape == (0, 5)


@both
@in_both_families
def test_an_image_of_one_pixel_passes(execute, family):
    net = small_resnet(family=family)
    x = images(1, 1)
    u = torch.tensor([[1, 0, 1]])
    assert_same(net(x, u, execute), Reference(net).slow(x, u))


def test_the_blocks_can_be_run_in_parts():
    net = small_resnet((2, 3), (3, 4))
    x = images(4)
    keep = policies(4, 5).bool()
    halves = net.run(net.run(net.stem(x), keep[:, :3]), keep[:, 3:], first=3)
    assert_equal(net.head(halves), net(x, keep, execute="sparse"))


def test_a_network_without_classifier_gives_features():
    net = small_resnet(classes=None)
    assert net.num_features == 5
    assert net(images(2)).shape == (2, 5)


SHAPES = [(2, 1), (3, 3), (2, 4), (4,), (1, 3), (2, 3, 1), ()]
REFUSED = [
    (torch.ones(shape), f"u has shape {list(shape)}; it must be [3] or [2, 3]") for shape in SHAPES
]
for value in (0.5, 2, -1, torch.nan, 1 + 1e-6):
    said = "u holds a value that is neither 0 (drop) nor 1 (keep)"
    REFUSED.append((torch.tensor([1.0, value, 0.0]), said))


@both
@pytest.mark.parametrize(("u", "said"), REFUSED)
def test_what_is_no_policy_is_refused(execute, u, said):
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        small_resnet()(images(2), u, execute)


@pytest.mark.parametrize("execute", ["Masked", "", None])
def test_another_execution_is_refused(execute):
    expected = f'execute is {execute!r}; it must be "masked" or "sparse"'
    with pytest.raises(ValueError, match=expected):
        small_resnet()(images(1), None, execute)


CIFAR = r"a CIFAR ResNet has 6n \+ 2 layers"
IMAGENET = "an ImageNet ResNet has one of 18, 34, 50, 101, 152 layers"


IMPOSSIBLE = {(depth,): f"depth is {depth}; {CIFAR}" for depth in (33, 2, 0, -4, 18)}
IMPOSSIBLE |= {(n, 10, "imagenet"): f"depth is {n}; {IMAGENET}" for n in (20, 32, 102)}
IMPOSSIBLE[20, 10, "mnist"] = 'family is \'mnist\'; it must be "cifar" or "imagenet"'
for classes, width in ((0, 16), (-1, 16), (10, 0)):
    said = f"num_classes is {classes}, width is {width}; both must be at least 1"
    IMPOSSIBLE[8, classes, "cifar", width] = said


@pytest.mark.parametrize("given", IMPOSSIBLE)
def test_a_network_that_does_not_exist_is_refused(given):
    with pytest.raises(ValueError, match=IMPOSSIBLE[given]):
        resnet(*given)


@pytest.mark.parametrize("widths", [(3,), (3, 4, 5)])
def test_segments_and_widths_must_be_as_many(widths):
    with pytest.raises(ValueError, match="zip"):
        small_resnet((1, 1), widths)


@pytest.mark.parametrize(
    ("depth", "how", "classes", "widths"),
    [
        (8, {}, 10, [16, 32, 64]),
        (8, {"num_classes": 1, "width": 6}, 1, [6, 12, 24]),
        (18, {"family": "imagenet"}, 10, [64, 128, 256, 512]),
        (18, {"family": "imagenet", "num_classes": 4, "width": 3}, 4, [3, 6, 12, 24]),
        (50, {"family": "imagenet", "width": 3}, 10, [3, 6, 12, 24]),
    ],
)
def test_resnet_gives_a_masked_resnet_of_so_many_classes_and_channels(depth, how, classes, widths):
    with torch.device("meta"):
        net = resnet(depth, **how)
        assert net(torch.zeros(2, 3, 8, 8)).shape == (2, classes)
    assert isinstance(net, MaskedResNet)
    assert net.family == how.get("family", "cifar")
    assert [layer[0].conv1.out_channels for layer in net.layers] == widths

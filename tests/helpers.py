"""Builders and Hypothesis strategies for all tests; they need nothing but the method.

Hypothesis draws sizes and a seed; tensors are built from these.
"""

import copy
import re
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from hypothesis import settings
from hypothesis import strategies as st
from torch import nn

from blockdrop_min import (
    BlockDrop,
    FixedPolicy,
    MaskedResNet,
    bound,
    force_on,
    greedy,
    policy_net,
    sample,
)
from blockdrop_min.masked_resnet import BasicBlock, Bottleneck

EXECUTIONS = ("masked", "sparse")
seeds = st.integers(0, 2**32 - 1)
alphas = st.floats(0.5, 1, exclude_min=True)
# For laws that are tried in several variants:
few = settings(max_examples=settings.default.max_examples // 2)


def rng(seed):
    return torch.Generator().manual_seed(seed)


# ----------------------------------------------------------------------------------------- networks
@torch.no_grad()
def randomise(network, seed):
    """Random weights, and BatchNorm statistics and affine maps that make eval mode non-trivial.

    network: any `nn.Module`.
    """
    g = rng(seed)
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.weight.normal_(0, (2 / module.weight[0].numel()) ** 0.5, generator=g)
        if isinstance(module, nn.Linear):
            module.bias.normal_(generator=g)
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                tensor.uniform_(0.5, 1.5, generator=g)
            for tensor in (module.bias, module.running_mean):
                tensor.normal_(0, 0.2, generator=g)
    return network


def small_resnet(
    segments=(1, 1, 1), widths=(3, 4, 5), classes=5, family="cifar", bottleneck=False, seed=0
):
    """A small random `MaskedResNet`: float64, eval mode."""
    block = Bottleneck if bottleneck else BasicBlock
    return randomise(MaskedResNet(block, segments, widths, classes, family), seed).double().eval()


def small_policy_net(
    num_blocks, family="cifar", width=3, half_size=False, seed=1, num_classes=None
):
    """A small random `PolicyNet`: float64, eval mode."""
    net = policy_net(num_blocks, family, width, half_size, num_classes)
    return randomise(net, seed).double().eval()


@torch.no_grad()
def pair(segments=(1, 1, 1), seed=0, fixed=None, num_classes=None):
    """A small random `BlockDrop`, float32, eval mode, whose s spreads widely over random images.

    fixed: the policy [K] of a `FixedPolicy` in the place of the policy network.
    num_classes: of the policy network's classifier.
    """
    net = small_resnet(segments, seed=seed)
    K = net.num_blocks
    if fixed is not None:
        policy = FixedPolicy(torch.tensor(fixed))
    else:
        policy = small_policy_net(K, seed=seed + 1, num_classes=num_classes)
    model = BlockDrop(net, policy, mean=(0.5, 0.5, 0.5), std=(0.29, 0.29, 0.29)).float().eval()
    if fixed is None:
        logits = policy.logit(policy.embed(batch(200)[0]))
        mean = logits.mean(0)
        std = logits.std(0)
        policy.logit.weight /= std[:, None]
        policy.logit.bias.copy_((policy.logit.bias - mean) / std + torch.linspace(-0.5, 0.5, K))
    return model


class Given(nn.Module):
    """In the place of a policy network: these probabilities s [B, K], which are its parameter."""

    def __init__(self, s):
        super().__init__()
        self.num_blocks = s.shape[1]
        self.s = nn.Parameter(s)

    def embed(self, x):
        return x

    def keep_probabilities(self, features):
        return self.s

    def forward(self, x):
        return self.s


def images_met(net):
    """Counts how many images each block meets: a list that grows by a number a block that runs."""
    counts = []
    for block in net.blocks:
        block.conv1.register_forward_hook(lambda _, inputs, output: counts.append(len(output)))
    return counts


def images(count, height=9, width=None, seed=0):
    return torch.randn(count, 3, height, width or height, generator=rng(seed), dtype=torch.float64)


def pictures(count, height=9, width=None, seed=0):
    """Images in [0, 1], as a `BlockDrop` takes them."""
    shape = (count, 3, height, width or height)
    return torch.rand(shape, generator=rng(seed), dtype=torch.float64)


def batch(count=6, seed=0, classes=5, size=9):
    """Images as the networks want them, and labels: float32 and int64."""
    x = torch.randn(count, 3, size, size, generator=rng(seed))
    y = torch.randint(classes, (count,), generator=rng(seed + 1))
    return x, y


def policies(count, num_blocks, seed=0, keep=0.5):
    return (torch.rand(count, num_blocks, generator=rng(seed)) < keep).double()


@st.composite
def cases(draw, families=("cifar", "imagenet"), min_blocks=1, min_batch=1, training=False):
    """A random network, images and policies: a namespace with net, x, u, B, K, seed.

    With `training`, no channel ever has a single value only: BatchNorm refuses it in training mode.
    """
    family = draw(st.sampled_from(families))
    bottleneck = draw(st.booleans())
    seed = draw(seeds)
    segments = draw(st.lists(st.integers(min_blocks, 3), min_size=1, max_size=3))
    several = st.lists(st.integers(2, 4), min_size=len(segments), max_size=len(segments))
    widths = draw(several.map(sorted))
    net = small_resnet(segments, widths, draw(st.integers(1, 5)), family, bottleneck, seed)
    stride = 2 ** (len(segments) - 1) * (4 if family == "imagenet" else 1)
    smallest = stride + 1 if training else 1  # stride + 1 pixels leave a map of two
    height, width = (draw(st.integers(smallest, smallest + 2 * stride)) for _ in range(2))
    B = draw(st.integers(min_batch, 4))
    K = net.num_blocks
    x = images(B, height, width, seed)
    u = policies(B, K, seed, keep=draw(st.sampled_from((0.0, 0.3, 0.5, 0.7, 1.0))))
    return SimpleNamespace(net=net.train(training), x=x, u=u, B=B, K=K, seed=seed)


# ----------------------------------------------------------------- the network, written another way
class Reference:
    """The network again, from its state_dict and its sizes alone.

    No module, no mask, BatchNorm as arithmetic.
    """

    def __init__(self, net, training=False):
        self.weights = net.state_dict()
        self.weights.update(net.named_parameters())  # these have gradients
        self.names = []
        for i, count in enumerate(net.segments):
            self.names += [f"layer{i + 1}.{j}" for j in range(count)]
        self.cifar = net.family == "cifar"
        self.training = training

    def conv(self, x, name, stride=1):
        weight = self.weights[f"{name}.weight"]
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    def bn(self, x, name):
        mean = self.weights[f"{name}.running_mean"]
        var = self.weights[f"{name}.running_var"]
        if self.training:
            mean = x.mean((0, 2, 3))
            var = x.var((0, 2, 3), correction=0)
        gain = self.weights[f"{name}.weight"] / (var + 1e-5).sqrt()
        x = torch.einsum("bchw,c->bchw", x - mean[:, None, None], gain)
        return x + self.weights[f"{name}.bias"][:, None, None]

    def stem(self, x):
        x = F.relu(self.bn(self.conv(x, "conv1", 1 if self.cifar else 2), "bn1"))
        return x if self.cifar else F.max_pool2d(x, 3, 2, 1)

    def stride(self, name):
        return 2 if name.endswith(".0") and not name.startswith("layer1") else 1

    def residual(self, x, name):
        depth = 3 if f"{name}.conv3.weight" in self.weights else 2
        for i in range(1, depth + 1):
            stride = self.stride(name) if i == depth - 1 else 1
            x = self.bn(self.conv(x, f"{name}.conv{i}", stride), f"{name}.bn{i}")
            x = F.relu(x) if i < depth else x
        return x

    def shortcut(self, x, name):
        stride = self.stride(name)
        if f"{name}.downsample.0.weight" in self.weights:
            x = self.conv(x, f"{name}.downsample.0", stride)
            return self.bn(x, f"{name}.downsample.1")
        if not self.cifar:
            return x
        if stride == 2:  # the mean of each 2 x 2 window; a window over the edge has fewer pixels
            x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2), value=torch.nan)
            x = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).nanmean((3, 5))
        last = self.weights.get(f"{name}.bn3.weight", self.weights[f"{name}.bn2.weight"])
        zeros = x.new_zeros(len(x), len(last) - x.shape[1], *x.shape[2:])
        return torch.cat([x, zeros], 1)

    def head(self, x):
        return x.flatten(2).mean(2) @ self.weights["fc.weight"].T + self.weights["fc.bias"]

    def plain(self, x):
        """The plain ResNet: every block on every image."""
        x = self.stem(x)
        for name in self.names:
            x = F.relu(self.shortcut(x, name) + self.residual(x, name))
        return self.head(x)

    def slow(self, x, u):
        """One image after the other, one block after the other, and a Python `if`."""
        logits = []
        for image, policy in zip(x, u, strict=True):
            out = self.stem(image[None])
            for name, keep in zip(self.names, policy.tolist(), strict=True):
                shortcut = self.shortcut(out, name)
                out = F.relu(shortcut + self.residual(out, name)) if keep else shortcut
            logits.append(self.head(out))
        return torch.cat(logits)


# ---------------------------------------------------------------------------------------- gradients
def gradients(loss, network):
    """Name -> gradient of the loss in every parameter, zeros where it has none."""
    names, parameters = zip(*network.named_parameters(), strict=True)
    options = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
    found = torch.autograd.grad(loss, parameters, **options)
    return dict(zip(names, found, strict=True))


def gradient(scalar, tensor):
    """Of a scalar in one tensor, zeros where it has none."""
    options = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
    return torch.autograd.grad(scalar, tensor, **options)[0]


def weighted_sum(logits):
    """A scalar of the logits in which each has a weight of its own, the same in every call."""
    weights = torch.linspace(0.5, 1.5, logits.numel(), dtype=logits.dtype)
    return (logits * weights.view_as(logits)).sum()


def assert_same(actual, expected, tolerance=1e-10):
    """Equal to `tolerance`, absolute and relative; NaN equals nothing.

    actual, expected: tensors, or dicts of tensors, of which a failure names the one that differs.
    """
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def assert_equal(actual, expected):
    """Bit for bit, types included. Tensors, or dicts of tensors, as in `assert_same`."""
    assert_same(actual, expected, 0)


def state(network):
    """A copy of a network's weights and statistics: {name: tensor}."""
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def assert_no_gradient(network):
    """No gradient has reached the network."""
    for name, p in network.named_parameters():
        assert p.grad is None, name


# -------------------------------------------------------------------------------------------- steps
LIVELY = 59  # the seed of a `pair` whose policies keep, and whose predictions are, all sorts
ALPHA = 0.8
BETA = 0.1
GAMMA = 2.0


def learning(model, resnet, policy):
    """The model with those networks in training mode that learn, the others frozen in eval mode."""
    model.resnet.train(resnet).requires_grad_(resnet)
    model.policy.train(policy).requires_grad_(policy)
    return model


def drawn(model, x, free=None, seed=0):
    """What a step with this seed draws, on a copy of the model: (s_bounded, u, u_greedy)."""
    s = copy.deepcopy(model).policy(x)
    s_bounded = bound(s, ALPHA)
    u = force_on(sample(s_bounded, rng(seed)), free)
    return s_bounded, u, force_on(greedy(s), free)


def rewarded(u, correct):
    """The reward of one image's policy, by hand."""
    kept = sum(u.tolist())
    return 1 - (kept / len(u)) ** 2 if correct else -GAMMA


# ----------------------------------------------------------------------------------------- policies
def every_policy(num_blocks):
    """All 2^K policies: [2^K, K] float64, counting in binary."""
    return (torch.arange(2**num_blocks)[:, None] >> torch.arange(num_blocks) & 1).double()


@st.composite
def probabilities(draw, max_blocks=6, inside=True):
    """s [B, K] float64, in (0.02, 0.98) if `inside`, else also exactly 0, 0.5 and 1."""
    B = draw(st.integers(1, 4))
    K = draw(st.integers(1, max_blocks))
    seed = draw(seeds)
    s = 0.02 + 0.96 * torch.rand(B, K, generator=rng(seed), dtype=torch.float64)
    special = torch.tensor([0, 0.5, 1]).double()[torch.randint(3, (B, K), generator=rng(seed + 1))]
    return s if inside else torch.where(policies(B, K, seed + 2).bool(), s, special)


def masks(num_blocks, min_free=0):
    """Strategy: which blocks are free, [K] bool."""
    free = st.sets(st.integers(0, num_blocks - 1), min_size=min_free)
    return free.map(lambda chosen: torch.tensor([k in chosen for k in range(num_blocks)]))


# ------------------------------------------------------------------------------------ foreign files
def authors_names(state):
    """A state_dict of ours under the names of the authors' code, as files from PyTorch 0.3."""
    renamed = {}
    for name, tensor in state.items():
        name = re.sub(r"layer(\d)\.0\.downsample\.", lambda m: f"ds.{int(m[1]) - 1}.", name)
        name = re.sub(r"layer(\d)\.", lambda m: f"blocks.{int(m[1]) - 1}.", name)
        if not name.endswith("num_batches_tracked"):
            renamed[name] = tensor
    return renamed

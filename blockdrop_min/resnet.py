"""ResNets whose residual blocks can be kept or dropped, image by image (paper, section 3.1). Read this file first.

Block k of K computes y = relu(shortcut(x) + F(x)). A policy u in {0, 1}^K says which blocks run: u_k = 1 keeps block k,
u_k = 0 drops it and passes shortcut(x) on, with no ReLU of its own. Names of modules are torchvision's.
"""

import torch
import torch.nn.functional as F
from torch import nn

SEGMENTS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}  # ImageNet depths


def conv(in_channels, out_channels, size, stride=1):
    """A convolution without bias that keeps the image size, but for its stride."""
    return nn.Conv2d(in_channels, out_channels, size, stride, padding=size // 2, bias=False)


class PoolAndPad(nn.Module):
    """The CIFAR shortcut between segments: average pooling, then zero channels at the end. It has no parameters."""

    def __init__(self, stride, new_channels):
        super().__init__()
        self.stride, self.new_channels = stride, new_channels

    def forward(self, x):
        # ceil_mode: an odd side becomes (side + 1) / 2, as the strided convolution beside it makes it.
        return F.pad(F.avg_pool2d(x, self.stride, ceil_mode=True), (0, 0, 0, 0, 0, self.new_channels))


class BasicBlock(nn.Module):
    """F(x) = bn(conv3x3(relu(bn(conv3x3(x))))), and a shortcut that is the identity or `downsample`."""

    expansion = 1

    def __init__(self, in_channels, width, stride, downsample):
        super().__init__()
        self.conv1, self.bn1 = conv(in_channels, width, 3, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, 3), nn.BatchNorm2d(width)
        self.downsample = downsample

    def residual(self, x):
        return self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))

    def shortcut(self, x):
        return x if self.downsample is None else self.downsample(x)


class Bottleneck(BasicBlock):
    """F(x) is a 1x1, a 3x3 (which has the stride) and a 1x1 convolution, the last four times as wide."""

    expansion = 4

    def __init__(self, in_channels, width, stride, downsample):
        nn.Module.__init__(self)
        self.conv1, self.bn1 = conv(in_channels, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, 3, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = conv(width, 4 * width, 1), nn.BatchNorm2d(4 * width)
        self.downsample = downsample

    def residual(self, x):
        x = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return self.bn3(self.conv3(x))


def run_masked(block, x, keep):
    """The block on every image; what it gives for an image that drops it is discarded, inf and NaN included.

    x: [B, C, H, W].    keep: [B] bool, on the CPU.    Returns [B, C', H', W'].
    """
    shortcut = block.shortcut(x)
    if keep.all():
        return F.relu(shortcut + block.residual(x))
    mask = keep.to(x.device)[:, None, None, None]
    # `where` and not a product: 0 x inf is NaN. It also stops gradients, but not before they have passed through the
    # weights, so images that drop the block enter it as zeros (in training they stay: BatchNorm counts all images).
    inputs = x if block.training else torch.where(mask, x, torch.zeros_like(x))
    with torch.set_grad_enabled(torch.is_grad_enabled() and bool(keep.any())):
        kept = F.relu(shortcut + block.residual(inputs))
    return torch.where(mask, kept, shortcut)


def run_sparse(block, x, keep):
    """The block on the images that keep it, and on no others. Arguments as in `run_masked`."""
    shortcut = block.shortcut(x)
    if keep.all():
        return F.relu(shortcut + block.residual(x))
    if not keep.any():
        return shortcut
    index = keep.nonzero().squeeze(1).to(x.device)  # [kept images]
    kept = F.relu(take(shortcut, index) + block.residual(take(x, index)))
    return put(shortcut, index, kept)


# Seen as [B, H, W, C], an image in memory format channels_last is one run of memory, and moving it is one copy.
def take(x, index):
    """The images at `index`. [B, C, H, W] -> [len(index), C, H, W]"""
    return x.permute(0, 2, 3, 1).index_select(0, index).permute(0, 3, 1, 2)


def put(x, index, images):
    """x with `images` in the places `index`, a new tensor [B, C, H, W]."""
    return x.permute(0, 2, 3, 1).index_copy(0, index, images.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def run_blocks(blocks, x, keep, run):
    """Some blocks one after the other. keep: [B, len(blocks)] bool, on the CPU.    run: `run_masked` or `run_sparse`."""
    for block, kept in zip(blocks, keep.unbind(1), strict=True):
        x = run(block, x, kept)
    return x


class MaskedResNet(nn.Module):
    """A ResNet that runs, for each image, the blocks that the image's policy keeps.

    `segments` holds the number of blocks of each segment, (5, 5, 5) for ResNet-32; `num_blocks` is their sum K.
    num_classes=None leaves the classifier out: the network then gives features [B, `num_features`].
    """

    def __init__(self, block, segments, widths, num_classes, family):
        super().__init__()
        self.segments, self.num_blocks, self.family = tuple(segments), sum(segments), family
        stem = widths[0]
        self.conv1 = conv(3, stem, 3) if family == "cifar" else conv(3, stem, 7, stride=2)
        self.bn1 = nn.BatchNorm2d(stem)
        self.maxpool = nn.Identity() if family == "cifar" else nn.MaxPool2d(3, stride=2, padding=1)
        channels = stem
        for i, (count, width) in enumerate(zip(segments, widths, strict=True)):
            blocks = []
            for j in range(count):
                stride, out = 2 if i > 0 and j == 0 else 1, width * block.expansion
                blocks.append(block(channels, width, stride, self._downsample(channels, out, stride)))
                channels = out
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
        self.num_features = channels
        self.fc = nn.Identity() if num_classes is None else nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def _downsample(self, channels, out, stride):
        if channels == out and stride == 1:
            return None
        if self.family == "cifar":
            return PoolAndPad(stride, out - channels)
        return nn.Sequential(conv(channels, out, 1, stride), nn.BatchNorm2d(out))

    @property
    def blocks(self):
        """The K blocks as one flat list, in the order in which an image meets them."""
        return [block for i in range(len(self.segments)) for block in getattr(self, f"layer{i + 1}")]

    def stem(self, x):
        """What comes before block 0. [B, 3, H, W] -> [B, C, H', W']"""
        return self.maxpool(F.relu(self.bn1(self.conv1(x))))

    def head(self, x):
        """What comes after block K - 1. [B, C, H, W] -> logits [B, C]"""
        return self.fc(x.mean((2, 3)))

    def forward(self, x, u=None, execute="masked"):
        """Logits of the images under their policies.

        x: [B, 3, H, W].    u: [B, K], or [K] for all images; 0 drops and 1 keeps a block, any dtype; None keeps all.
        execute: "masked" runs every block on every image and discards what is dropped; "sparse" runs each block only
        on the images that keep it. Both give the same logits in eval mode. In training mode BatchNorm's statistics
        are those of all images when masked, and of the images that keep the block when sparse.
        Returns logits [B, C].    Raises ValueError on another `execute`, and on a `u` of another shape or value.
        """
        if execute not in ("masked", "sparse"):
            raise ValueError(f'execute is {execute!r}; it must be "masked" or "sparse"')
        run = run_masked if execute == "masked" else run_sparse
        keep = check_policy(u, len(x), self.num_blocks)  # [B, K]
        return self.head(run_blocks(self.blocks, self.stem(x), keep, run))

    def run(self, x, keep, first=0):
        """The n blocks from `first` on, sparsely. x: [B, C, H, W], the first one's input.    keep: [B, n] bool, on the CPU."""
        return run_blocks(self.blocks[first : first + keep.shape[1]], x, keep, run_sparse)


def check_policy(u, num_images, num_blocks):
    """The policy as [B, K] bool on the CPU (one wait for the GPU, not one a block), or ValueError."""
    if u is None:
        return torch.ones(num_images, num_blocks, dtype=torch.bool)
    u = torch.as_tensor(u)
    if tuple(u.shape) not in ((num_blocks,), (num_images, num_blocks)):
        raise ValueError(f"u has shape {list(u.shape)}; it must be [{num_blocks}] or [{num_images}, {num_blocks}]")
    u = u.detach().cpu()
    if not ((u == 0) | (u == 1)).all():
        raise ValueError("u holds a value that is neither 0 (drop) nor 1 (keep)")
    return u.bool().expand(num_images, num_blocks)


def resnet(depth, num_classes=10, family="cifar"):
    """A `MaskedResNet` by its depth.

    family "cifar": depth 6n + 2 (8, 14, 20, 32, 110, ...), three segments of n basic blocks, widths 16, 32, 64.
    family "imagenet": 18, 34 (basic blocks), 50, 101, 152 (bottlenecks), four segments, torchvision's layout.
    Raises ValueError on any other depth, family or number of classes.
    """
    if num_classes < 1:
        raise ValueError(f"num_classes is {num_classes}; it must be at least 1")
    segments = segments_of(depth, family)
    block = Bottleneck if family == "imagenet" and depth >= 50 else BasicBlock
    return MaskedResNet(block, segments, (16, 32, 64) if family == "cifar" else (64, 128, 256, 512), num_classes, family)


def segments_of(depth, family):
    """Blocks per segment of a ResNet, (5, 5, 5) for depth 32 of family "cifar"; ValueError if there is no such ResNet."""
    if family == "cifar":
        if depth < 8 or depth % 6 != 2:
            raise ValueError(f"depth is {depth}; a CIFAR ResNet has 6n + 2 layers: 8, 14, 20, 26, 32, ..., 110, ...")
        return (depth // 6,) * 3
    if family == "imagenet":
        if depth not in SEGMENTS:
            raise ValueError(f"depth is {depth}; an ImageNet ResNet has one of {', '.join(map(str, SEGMENTS))} layers")
        return SEGMENTS[depth]
    raise ValueError(f'family is {family!r}; it must be "cifar" or "imagenet"')

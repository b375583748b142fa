"""ResNets whose residual blocks can be kept or dropped, image by image (paper, section 3.1).

Read this file first; on a first reading only `run_masked`, the three plain lines in `run_sparse`
and `MaskedResNet.forward`. Block k of K computes y = relu(shortcut(x) + F(x)). A policy u in
{0, 1}^K says which blocks run: u_k = 1 keeps block k, u_k = 0 drops it: only shortcut(x) goes on,
with no ReLU of its own. A ResNet-20 has K = 9 blocks: with two convolutions each, its first
convolution and its classifier they make 20 layers. Names of modules are torchvision's.

Words. A *policy* u is a vector of K bits; the *policy network* sees an image and gives the
distribution of its policy, K probabilities s. `keep` is u as bool, `kept` the indices of the
images of a batch that keep one block. A block is *free* if the policy decides on it, else *forced*
on. In the *warm start* the policy network learns to classify; once *settled*, it learns no more.
"""

import torch
import torch.nn.functional as F
from torch import nn

IMAGENET_SEGMENTS = {  # depth -> blocks per segment
    18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3),
}  # fmt: skip
WIDTHS = {"cifar": 16, "imagenet": 64}  # channels of the first segment; each further one has twice


def conv(in_channels, out_channels, size, stride=1):
    """A convolution without bias; at stride 1 it keeps the size of the image."""
    return nn.Conv2d(in_channels, out_channels, size, stride, padding=size // 2, bias=False)


class PoolAndPad(nn.Module):
    """The CIFAR shortcut between segments: average pooling, then channels of zeros at the end."""

    def __init__(self, stride, new_channels):
        super().__init__()
        self.stride = stride
        self.new_channels = new_channels

    def forward(self, x):
        # ceil_mode: an odd side becomes (side + 1) / 2, as in the strided convolution beside it.
        x = F.avg_pool2d(x, self.stride, ceil_mode=True)
        return F.pad(x, (0, 0, 0, 0, 0, self.new_channels))


class BasicBlock(nn.Module):
    """F(x) = bn(conv3x3(relu(bn(conv3x3(x))))); the shortcut is the identity or `downsample`."""

    expansion = 1

    def __init__(self, in_channels, width, stride, downsample):
        super().__init__()
        self.conv1 = conv(in_channels, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = downsample

    def forward(self, x, keep=None, overwrite=False):
        """The block on the images that keep it, its shortcut on the others. -> [B, C', H', W']

        x: [B, C, H, W].
        keep: [B] bool: run masked; the keeping images' indices [n] int64: sparsely; None: all keep.
        overwrite: whether x may be overwritten.
        """
        if keep is None:
            return self.residual(x).add_(self.shortcut(x)).relu_()  # in place: F's result is new
        if keep.dtype == torch.bool:
            return run_masked(self, x, keep)
        return run_sparse(self, x, keep, overwrite)

    def residual(self, x):
        """F(x): [B, C, H, W] -> [B, C', H', W'], a new tensor."""
        x = F.relu(self.bn1(self.conv1(x)))
        return self.bn2(self.conv2(x))

    def shortcut(self, x):
        """What a dropped block passes on: [B, C, H, W] -> [B, C', H', W']."""
        return x if self.downsample is None else self.downsample(x)


class Bottleneck(BasicBlock):
    """F(x): a 1x1, a 3x3 (which has the stride) and a 1x1 convolution, the last 4 times as wide."""

    expansion = 4

    def __init__(self, in_channels, width, stride, downsample):
        nn.Module.__init__(self)
        self.conv1 = conv(in_channels, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, 4 * width, 1)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = downsample

    def residual(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return self.bn3(self.conv3(x))


def run_masked(block, x, keep):
    """The definition: every image runs the block, and the output of a dropped block is discarded.

    y = relu(shortcut(x) + F(x)) where `keep`, shortcut(x) elsewhere. Nothing of a dropped block,
    inf and NaN included, reaches y. It may reach gradients (0 x inf is NaN); train sparsely.

    x: [B, C, H, W]; stays as it is.
    keep: [B] bool, on x's device.
    Returns y: [B, C', H', W'].
    """
    shortcut = block.shortcut(x)  # once: in training mode its BatchNorm counts each call
    out = F.relu(shortcut + block.residual(x))
    return torch.where(keep[:, None, None, None], out, shortcut)


def run_sparse(block, x, kept, overwrite=False):
    """The same function, but F runs on the images that keep the block and on no others.

    x: [B, C, H, W].
    kept: [n] int64, the indices of the images that keep the block, on x's device.
    overwrite: whether y may be written into x, which saves a copy. No gradient is recorded then.
    Returns y: [B, C', H', W'].
    """
    # In three plain lines, index, run, put back:
    #     y = block.shortcut(x).clone()
    #     part = F.relu(y[kept] + block.residual(x[kept]))
    #     y[kept] = part
    # The lines below do the same, faster: if no image keeps the block, or all do, none is moved;
    # viewed as [B, H, W, C], an image in channels_last is one run of memory, so that moving it is
    # one copy; where the shortcut is x itself, its images are gathered once.
    shortcut = block.shortcut(x)
    if len(kept) == 0:
        return shortcut
    if len(kept) == len(x):
        return block.residual(x).add_(shortcut).relu_()
    part = rows(x).index_select(0, kept).permute(0, 3, 1, 2)
    old = part if shortcut is x else rows(shortcut).index_select(0, kept).permute(0, 3, 1, 2)
    part = block.residual(part).add_(old).relu_()
    put = rows(shortcut).index_copy_ if overwrite else rows(shortcut).index_copy
    return put(0, kept, rows(part)).permute(0, 3, 1, 2)


def rows(x):
    """[B, C, H, W] viewed as [B, H, W, C]."""
    return x.permute(0, 2, 3, 1)


def kept_images(keep, device):
    """For each block the indices of the images that keep it, all in one upload at most.

    keep: [B, n] bool, on the CPU.
    Returns n tensors of int64 on the device; n times None if all images keep all n blocks.
    """
    if keep.all():  # nothing to upload
        return [None] * keep.shape[1]
    images = keep.t().nonzero()[:, 1]  # block by block
    return images.to(device, non_blocking=True).split(keep.sum(0).tolist())


class Layer(nn.Sequential):
    """A segment: blocks in a row."""

    def forward(self, x, keep=None, overwrite=False):
        """[B, C, H, W] -> [B, C', H', W']

        keep: for each block which images keep it, as the block takes it; None: all keep all.
        overwrite: whether x may be overwritten.
        """
        for block, column in zip(self, keep or [None] * len(self), strict=True):
            x = block(x, column, overwrite)
        return x


class MaskedResNet(nn.Module):
    """A ResNet that runs, for each image, the blocks that the image's policy keeps.

    block: the class of its blocks.
    segments: blocks per segment, (5, 5, 5) for ResNet-32; `num_blocks` is their sum K.
    widths: channels of each segment.
    num_classes: None leaves the classifier out; the output is then features [B, `num_features`].
    family: "cifar" or "imagenet", which differ in the stem and in the shortcuts.
    """

    def __init__(self, block, segments, widths, num_classes, family):
        super().__init__()
        self.segments = tuple(segments)
        self.num_blocks = sum(segments)
        self.family = family
        channels = widths[0]
        small = family == "cifar"
        self.conv1 = conv(3, channels, 3) if small else conv(3, channels, 7, stride=2)
        self.bn1 = nn.BatchNorm2d(channels)
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, stride=2, padding=1)
        for i, (count, width) in enumerate(zip(segments, widths, strict=True)):
            layer = Layer()
            for j in range(count):
                stride = 2 if i > 0 and j == 0 else 1
                out = width * block.expansion
                downsample = self._downsample(channels, out, stride)
                layer.append(block(channels, width, stride, downsample))
                channels = out
            self.add_module(f"layer{i + 1}", layer)
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
    def layers(self):
        """The segments, modules `layer1`, `layer2`, ..., each a row of blocks."""
        return [getattr(self, f"layer{i + 1}") for i in range(len(self.segments))]

    @property
    def blocks(self):
        """The K blocks as one flat list, in the order in which an image meets them."""
        return [block for layer in self.layers for block in layer]

    def stem(self, x):
        """What comes before block 0. [B, 3, H, W] -> [B, C, H', W']"""
        return self.maxpool(F.relu(self.bn1(self.conv1(x))))

    def head(self, x):
        """What comes after block K - 1. [B, C, H, W] -> logits [B, C]"""
        return self.fc(x.mean((2, 3)))

    def forward(self, x, u=None, execute="masked"):
        """Logits of the images under their policies.

        x: [B, 3, H, W].
        u: [B, K], or [K] for all images; 0 drops and 1 keeps a block, any dtype; None keeps all.
        execute: "masked" runs every block on every image and discards what is dropped; "sparse"
            runs each block only on the images that keep it. Both give the same logits in eval mode.
            In training mode BatchNorm's statistics are those of all images when masked, and of the
            images that keep the block when sparse. While torch.export or torch.jit.trace records
            the pass, it is always masked.
        Returns logits [B, C].
        Raises ValueError on another `execute`, and on a `u` of another shape or value.
        """
        if execute not in ("masked", "sparse"):
            raise ValueError(f'execute is {execute!r}; it must be "masked" or "sparse"')
        columns = [None] * self.num_blocks
        if u is not None:
            keep = check_policy(u, x.shape[0], self.num_blocks)
            masked = execute == "masked" or being_recorded()
            columns = keep.to(x.device).unbind(1) if masked else kept_images(keep, x.device)
        x = self.stem(x)
        overwrite = self.may_overwrite()
        for layer in self.layers:
            x = layer(x, columns[: len(layer)], overwrite)
            columns = columns[len(layer) :]
        return self.head(x)

    def run(self, x, keep, first=0):
        """Runs the n blocks from `first` on, sparsely.

        x: [B, C, H, W], the input of block `first`; may be overwritten if no gradient is wanted.
        keep: [B, n] bool, on the CPU.
        Returns the output of block first + n - 1.
        """
        blocks = self.blocks[first : first + keep.shape[1]]
        overwrite = self.may_overwrite()
        for block, kept in zip(blocks, kept_images(keep, x.device), strict=True):
            x = block(x, kept, overwrite)
        return x

    def may_overwrite(self):
        """Whether blocks may overwrite their inputs: no gradient needs them, no hook holds them."""
        blocks = self.blocks
        shortcuts = [block.downsample for block in blocks if block.downsample is not None]
        modules = [self.maxpool, *self.layers, *blocks, *shortcuts]
        hooked = any(module._forward_hooks or module._forward_pre_hooks for module in modules)
        return not (hooked or torch.is_grad_enabled())


def being_recorded():
    """Whether PyTorch records a pass (torch.export, torch.jit.trace) to repeat it on other images.

    Then the values of tensors must not decide what runs: a pass is masked, and nothing is checked.
    """
    return torch.jit.is_tracing() or torch.compiler.is_exporting()


def check_policy(u, num_images, num_blocks):
    """The policy as [B, K] bool on the CPU, or ValueError. Here alone a pass waits for a GPU."""
    u = torch.as_tensor(u)
    if u.shape != (num_images, num_blocks)[-u.dim() :]:
        allowed = f"[{num_blocks}] or [{num_images}, {num_blocks}]"
        raise ValueError(f"u has shape {list(u.shape)}; it must be {allowed}")
    u = u.detach().cpu()
    if not being_recorded() and not ((u == 0) | (u == 1)).all():
        raise ValueError("u holds a value that is neither 0 (drop) nor 1 (keep)")
    return u.bool().expand(num_images, num_blocks)


def resnet(depth, num_classes=10, family="cifar", width=None):
    """A `MaskedResNet` by its depth.

    depth: "cifar": 6n + 2 (8, 14, 20, 32, 110, ...), three segments of n basic blocks. "imagenet":
        18, 34 (basic blocks), 50, 101, 152 (bottlenecks), four segments.
    num_classes: at least 1.
    family: "cifar", or "imagenet", which has torchvision's layout.
    width: channels of the first segment, doubled in each further one; None: 16 (cifar) or 64.
    Raises ValueError on any other depth, family, width or number of classes.
    """
    segments = segments_of(depth, family)
    width = WIDTHS[family] if width is None else width
    if num_classes < 1 or width < 1:
        raise ValueError(f"num_classes is {num_classes}, width is {width}; both must be at least 1")
    block = Bottleneck if family == "imagenet" and depth >= 50 else BasicBlock
    widths = [width * 2**i for i in range(len(segments))]
    return MaskedResNet(block, segments, widths, num_classes, family)


def segments_of(depth, family):
    """Blocks per segment, (5, 5, 5) for depth 32 of "cifar"; ValueError if there is no such net."""
    if family == "cifar" and depth >= 8 and depth % 6 == 2:
        return (depth // 6,) * 3
    if family == "imagenet" and depth in IMAGENET_SEGMENTS:
        return IMAGENET_SEGMENTS[depth]
    if family not in WIDTHS:
        raise ValueError(f'family is {family!r}; it must be "cifar" or "imagenet"')
    allowed = "a CIFAR ResNet has 6n + 2 layers: 8, 14, 20, 26, 32, ..., 110, ..."
    if family == "imagenet":
        allowed = f"an ImageNet ResNet has one of {', '.join(map(str, IMAGENET_SEGMENTS))} layers"
    raise ValueError(f"depth is {depth}; {allowed}")

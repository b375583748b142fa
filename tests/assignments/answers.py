"""Tasks 4, 9, 10 and 13: short functions that answer a question."""

import itertools

import torch


def layer_cost(layer, size):
    """FLOPs of one layer on one image, 2 x multiply-adds, and the size that it gives.

    layer: a convolution, a linear layer or max pooling; kernel, stride and padding may be one
        number or (vertical, horizontal). Pooling costs nothing, but changes the size.
    size: (height, width) of the image; a linear layer, which sees none, leaves it.
    Returns the FLOPs, an int, and (height, width).
    """
    if isinstance(layer, torch.nn.Linear):
        return 2 * layer.in_features * layer.out_features, size

    def pair(value):
        return value if isinstance(value, tuple) else (value, value)

    windows = zip(size, *map(pair, (layer.kernel_size, layer.stride, layer.padding)), strict=True)
    height, width = ((side + 2 * pad - kernel) // step + 1 for side, kernel, step, pad in windows)
    if isinstance(layer, torch.nn.MaxPool2d):
        return 0, (height, width)
    return 2 * layer.weight.numel() * height * width, (height, width)


def expected_gradient(loss, s, reward_of, baseline):
    """The gradient in s that `loss` has in expectation over samples, from all 2^K policies.

    A policy u is drawn with probability pi(u) = prod_k s_k^u_k (1 - s_k)^(1 - u_k), each image with
    its own. How often it is drawn is a weight and is not differentiated; only the loss is.

    loss: loss(s, u, A), a mean over images that is linear in A, like policy_loss. It may or may not
        pass gradients through A.
    s: [B, K], K small.
    reward_of: reward_of(u), u [B, K] of 0/1 in s's dtype -> R [B]
    baseline: baseline(s) -> b [B], subtracted from R; it may have a gradient in s.
    Returns [B, K].
    """
    s = s.detach().requires_grad_()
    total = 0
    for policy in itertools.product((0.0, 1.0), repeat=s.shape[1]):
        u = torch.tensor(policy, dtype=s.dtype).expand_as(s)
        pi = torch.where(u == 1, s, 1 - s).prod(1).detach()  # [B]
        A = reward_of(u) - baseline(s)
        total = total + loss(s, u, pi * A)
    return torch.autograd.grad(total, s)[0]


def attached_factor(s):
    """How often too much an image counts if the gradient also flows through the baseline in A.

    The baseline is b(s) = sum_u pi(u) R(u), the expected reward. With A = R(u) - b(s) detached the
    expected gradient is that of J; with A attached it is c(s) times as much. Measure c with
    expected_gradient for some s, and find its law.

    s: [B, K] in [0, 1], 0 and 1 included.
    Returns c: [B].
    """
    return 1 + (torch.special.entr(s) + torch.special.entr(1 - s)).sum(1)


def broadcast_loss(log_pi, advantage):
    """What -(advantage[:, None] * log_pi).mean() computes, without a tensor of B x B.

    log_pi: [B].
    advantage: [B].
    Returns a scalar.
    """
    return -advantage.mean() * log_pi.mean()


def silent_batch(count):
    """Advantages [count] from which the silent loss learns nothing, the right one from each image.

    count: at least 2.
    """
    advantage = torch.ones(count)
    advantage[0] = 1 - count
    return advantage


def catches(loss):
    """A test of policy losses: whether each image is judged by its own advantage, and by no other.

    loss: loss(s, u, A) -> scalar; s, u [B, K] and A [B]. May be called 20 times at most, and may
        have any scale: a millionth of a right loss is right.
    Returns True for a right loss, False for one that mixes images.
    """
    u = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])

    def gradients(advantage):
        s = torch.tensor([[0.3, 0.6], [0.7, 0.2], [0.6, 0.9]], requires_grad=True)
        return torch.autograd.grad(loss(s, u, torch.tensor(advantage)), s)[0]

    before = gradients([2.0, -1.0, 4.0])
    for i in range(3):
        advantage = [2.0, -1.0, 4.0]
        advantage[i] *= -3
        expected = before.clone()
        expected[i] *= -3
        if (gradients(advantage) - expected).abs().max() > 1e-3 * before.abs().max():
            return False
    return True


def breakeven(right, keep, fewer, num_blocks, gamma):
    """How probable a right prediction must stay for fewer blocks to earn as much reward.

    right: the probability that the prediction is right with `keep` of the K blocks.
    fewer: a smaller number of blocks.
    num_blocks: K.
    gamma: the penalty of a wrong prediction.
    Returns the probability q, a float, at which `fewer` blocks earn on average what `keep` earn.
    """
    return right * (1 - (keep / num_blocks) ** 2 + gamma) / (1 - (fewer / num_blocks) ** 2 + gamma)

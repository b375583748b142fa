"""The curriculum: blocks come under the policy's control from the last to the first (paper, section 3.3)."""

import torch


def free_blocks(epoch, num_blocks, epochs=None):
    """Which blocks the policy decides on in this 0-based epoch; the others are forced on.

    The last min(epoch + 1, K) blocks are free (paper). With `epochs`, the curriculum's length, they are freed evenly
    over it: the last ceil(K (epoch + 1) / epochs), at most K.
    Returns [K] bool.    Raises ValueError if epoch < 0, num_blocks < 1 or epochs < 1.
    """
    if epoch < 0 or num_blocks < 1 or (epochs is not None and epochs < 1):
        raise ValueError(f"epoch {epoch}, num_blocks {num_blocks}, epochs {epochs}; they must be at least 0, 1 and 1")
    freed = epoch + 1 if epochs is None else -(-num_blocks * (epoch + 1) // epochs)
    return torch.arange(num_blocks) >= num_blocks - min(freed, num_blocks)


def force_on(u, free):
    """u with 1 in every column that is not free. u: [B, K].    free: [K] bool, None = all.    Returns [B, K].

    ValueError on another mask.
    """
    if free is None:
        return u
    if free.shape != u.shape[1:] or free.dtype != torch.bool:
        raise ValueError(f"free is {free.dtype} {list(free.shape)}; it must be bool [{u.shape[-1]}]")
    return torch.where(free.to(u.device), u, torch.ones_like(u))

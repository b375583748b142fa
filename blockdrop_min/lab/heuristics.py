"""The rivals that do not look at the image: the paper's heuristics."""

import torch


def static_policy(kind, keep, segments, generator=None):
    """One policy for all images, the paper's heuristics: [K] float 0/1 with exactly `keep` ones.

    kind: "first" keeps the first blocks, "random" random ones, "distribute" the first ones of each
        segment, as many in each as the segments' sizes allow.
    keep: the number of blocks to keep, between 0 and K.
    segments: blocks per segment, e.g. (5, 5, 5).
    generator: for "random".
    Raises ValueError on another kind or number.
    """
    num_blocks = sum(segments)
    if not 0 <= keep <= num_blocks:
        raise ValueError(f"keep is {keep}; it must lie between 0 and K = {num_blocks}")
    if kind == "first":
        order = torch.arange(num_blocks)
    elif kind == "random":
        order = torch.randperm(num_blocks, generator=generator)
    elif kind == "distribute":  # the first blocks of all segments before the second ones of any
        rank = torch.cat([torch.arange(count) for count in segments])
        order = torch.sort(rank, stable=True).indices
    else:
        raise ValueError(f'kind is {kind!r}; it must be "first", "random" or "distribute"')
    return torch.zeros(num_blocks).index_fill(0, order[:keep], 1.0)

"""The fair rivals of a run: one policy for all images, trained as long as BlockDrop was."""

import copy
from pathlib import Path

from ..blockdrop import static_policy
from .cost import resnet_cost
from .evaluation import best_static_policy, run_policy
from .files import read_file


def static_rivals(settings, model, data, resnet):
    """The policies to train as long as BlockDrop, on each side of its mean FLOPs.

    Of k and of k + 1 blocks, each with the best accuracy that a search finds on the validation
    split for the pretrained ResNet, from which they start as BlockDrop did.

    model: the `BlockDrop` that was trained.
    resnet: the file of the pretrained ResNet.
    Returns a list of at most `settings.rivals` policies, each K digits 0 or 1.
    """
    learned = settings.policy == "learned" and "finetune" in settings.plan
    if not (settings.rivals and learned and Path(resnet).exists()):
        return []
    ours = run_policy(model, data.val, data.crop, workers=settings.workers)
    cost = resnet_cost(model.resnet, data.crop)
    K = model.resnet.num_blocks
    keep = int((ours.flops_mean - cost.fixed) / (cost.full - cost.fixed) * K)
    keep = min(max(keep, 1), K - 1)
    pretrained = copy.deepcopy(model)
    pretrained.resnet.load_state_dict(read_file(resnet))
    found = []
    for count in range(keep, keep + settings.rivals):
        often = ours.u.mean(0).topk(count).indices
        start = [
            static_policy(kind, count, model.resnet.segments) for kind in ("first", "distribute")
        ]
        start.append(ours.u.new_zeros(K).index_fill(0, often, 1))
        u = best_static_policy(pretrained, data.val, data.crop, start, settings.workers)
        found.append("".join(str(int(kept)) for kept in u))
    return found

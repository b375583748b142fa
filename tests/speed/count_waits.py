"""What a training step costs a GPU before it computes, by stage: waits of the CPU, and launches.

Counted on the stand-in (tests/accelerator.py), for 15 and 54 blocks; an upload counts as a wait,
though not each need be one. `python tests/speed/count_waits.py`
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from accelerator import accelerator
from test_device import STEPS, take

for step in STEPS:
    for num_blocks in (15, 54):
        with accelerator() as counts:
            take(step, torch.device("cuda"), num_blocks, again=counts.clear)
            costs = ", ".join(f"{count} {name}" for name, count in counts.items())
        print(f"{step}, {num_blocks} blocks: {costs}")

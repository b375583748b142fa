"""What a training step costs a GPU before it computes, by stage: waits of the CPU, and launches.

Counted on the stand-in (tests/accelerator.py), for ResNet-32 and ResNet-110; an upload counts as a
wait, though not each need be one. `python tests/speed/count_waits.py`
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from test_device import MOST_WAITS, step_counts

for case, (stage, changes, _) in MOST_WAITS.items():
    for num_blocks in (15, 54):
        counts = step_counts(num_blocks, stage, **changes)
        costs = ", ".join(f"{count} {name}" for name, count in counts.items())
        print(f"{case}, {num_blocks} blocks: {costs}")

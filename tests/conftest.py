"""Hypothesis profiles, and one thread for all tests.

Small tensors are slower, and less repeatable, on several threads.
"""

import os

import torch
from hypothesis import HealthCheck, Phase, settings

SHARED = dict(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("default", max_examples=10, **SHARED)
# For a look around, which takes minutes: --hypothesis-profile=explore
settings.register_profile("explore", max_examples=100, **SHARED)
settings.register_profile("ci", max_examples=10, derandomize=True, **SHARED)
# For tests/faults: the first failure is enough. To make it smaller takes longer than all examples.
ONCE = dict(derandomize=True, phases=[Phase.explicit, Phase.generate], **SHARED)
settings.register_profile("faults", max_examples=15, **ONCE)
settings.register_profile("quick", max_examples=4, **ONCE)
# For tests/assignments: alike, but with the examples of --hypothesis-seed.
SEEDED = ONCE | dict(derandomize=False, database=None)
settings.register_profile("graded", max_examples=10, **SEEDED)
settings.load_profile("ci" if os.environ.get("CI") else "default")
torch.set_num_threads(1)


def pytest_addoption(parser):
    parser.addoption("--kills", type=int, help="kill runs so often for each seed in test_stress.py")
    parser.addoption("--speed", action="store_true", help="measure steps in test_authors.py")
    parser.addoption("--seeds", type=int, default=1, help="seeds of test_stress.py")

"""The benchmark measures what it claims, on policies that are as asked for. `pytest tests/speed`"""

import json
import math

import pytest
import torch
from accelerator import accelerator
from helpers import assert_same, seeds
from hypothesis import given
from hypothesis import strategies as st
from runs import state_of
from speed import bench

from blockdrop_min import fast, policy_cost, resnet_cost
from blockdrop_min.lab.checkpoint import save
from blockdrop_min.lab.shapes import SHAPES

QUICK = ["--depth=8", "--image-size=16", "--seconds=0", "--no-compile"]
ON_CPU = [*QUICK, "--device=cpu"]


# ----------------------------------------------------------------------------------------- by hand
@given(st.integers(1, 60), st.floats(0, 1), st.integers(1, 20), seeds)
def test_random_policies_keep_as_many_blocks_as_asked_for(num_blocks, fraction, count, seed):
    keep = fraction * num_blocks
    u = bench.random_policies(count, num_blocks, keep, torch.Generator().manual_seed(seed))
    assert u.shape == (count, num_blocks)
    assert set(u.unique().tolist()) <= {0.0, 1.0}
    assert set(u.sum(1).tolist()) <= {math.floor(keep), math.ceil(keep)}


def test_a_fractional_number_of_blocks_is_met_on_average_and_every_block_is_kept_as_often():
    u = bench.random_policies(40_000, 33, 24.8, torch.Generator().manual_seed(0))
    assert u.sum(1).mean().item() == pytest.approx(24.8, abs=0.01)
    assert_same(u.mean(0), torch.full((33,), 24.8 / 33), 0.02)


TIMES = {  # seconds of three rounds
    "full": [4.0, 4.0, 4.0],
    "full, fast": [3.0, 3.0, 3.0],
    "sparse": [0.5, 0.5, 0.5],
    "fast": [1.0, 1.5, 2.0],
}


def test_a_row_of_the_table_by_hand():
    row = bench.compare(TIMES, 6, 40, 100)
    assert row.pop("images/s") == {"full": 1.5, "full, fast": 2, "sparse": 12, "fast": 4}
    expected = {"batch": 6, "rounds": 3, "best full": "full, fast"}
    expected |= {"speedup": 2, "quartiles": [1.75, 2.5]}  # of 3 / 1, 3 / 1.5, 3 / 2
    assert row == expected | {"limit": 2.5, "quotient": 0.8}  # 100 / 40, and 2 / 2.5


def test_variants_take_turns_on_the_same_batch_after_all_have_met_all_batches():
    calls = []
    variants = {name: lambda x, name=name: calls.append(name + x) for name in "ab"}
    times = bench.take_turns(variants, [("1",), ("2",)], torch.device("cpu"), seconds=0)
    assert {name: len(series) for name, series in times.items()} == {"a": 3, "b": 3}
    assert calls == ["a1", "a2", "b1", "b2", "a1", "b1", "a2", "b2", "a1", "b1"]


def test_every_batch_has_images_and_policies_of_its_own():
    batches = bench.random_batches(bench.untrained(20, "cifar"), 4, 16, 4.5)
    assert len({x.numpy().tobytes() for x, _ in batches}) == bench.DRAWS
    assert len({u.numpy().tobytes() for _, u in batches}) == bench.DRAWS


# --------------------------------------------------------------------------------------- two roads
@pytest.mark.parametrize("name", ["full", "full, fast", "masked", "sparse", "fast"])
@torch.inference_mode()
def test_the_variants_compute_the_full_network_and_the_same_policies(name):
    model = bench.untrained(8, "cifar")
    ((x, u), *_) = bench.random_batches(model, 4, 16, 2)
    variants = bench.make_variants(model, torch.float32, with_compile=False)
    logits = variants[name](x.clone(), u)
    expected = model.resnet(x, None if name.startswith("full") else u)
    assert_same(logits[1] if isinstance(logits, tuple) else logits, expected, 1e-4)


def test_the_compiled_network_computes_the_same():
    model, x = bench.untrained(8, "cifar"), torch.randn(4, 3, 16, 16)
    assert_same(bench.full_network(fast(model.resnet))(x), model.resnet(x), 1e-4)


@torch.inference_mode()
def test_what_is_measured_pays_for_the_policy_network():
    model = bench.untrained(8, "cifar")
    batches = bench.random_batches(model, 4, 16, 2)
    cost = resnet_cost(model.resnet, 16)
    used = [cost.of(u).mean().item() + policy_cost(model.policy, 16) for _, u in batches]
    row = bench.measure(model, batches, 0, torch.float32, with_compile=False)
    assert row["limit"] == pytest.approx(cost.full / (sum(used) / len(used)))


# ---------------------------------------------------------------------------------------- programs
def test_the_benchmark_prints_and_writes_what_it_measured(tmp_path, capsys):
    path = tmp_path / "bench.json"
    assert bench.main([*ON_CPU, "--keep=2", "--batches", "1", "5", "--json", str(path)]) == 0
    found = json.loads(path.read_text())
    printed = " ".join(capsys.readouterr().out.split())
    assert "2 of 3 blocks kept" in found["subject"]
    assert "quotient" in printed
    assert [row["batch"] for row in found["rows"]] == [1, 5]
    for row in found["rows"]:
        assert row["images/s"].keys() == {"full", "full, fast", "masked", "sparse", "fast"}
        assert row["quotient"] > 0
        assert f"{row['speedup']:.2f} {row['quartiles'][0]:.2f}-" in printed
        assert 1 < row["limit"] < 2  # two of three blocks, and the policy network


def test_no_block_may_be_kept_and_half_are_if_nothing_is_said(monkeypatch):
    kept = []
    see = lambda model, batches, *_: kept.append(batches[0][1].sum(1).tolist()) or {}  # noqa: E731
    monkeypatch.setattr(bench, "measure", see)
    monkeypatch.setattr(bench, "make_table", lambda found: "")
    bench.main([*ON_CPU, "--depth=14", "--batches=2", "--keep=0"])
    bench.main([*ON_CPU, "--depth=14", "--batches=2"])
    assert kept == [[0, 0], [3, 3]]


def test_the_benchmark_runs_in_bfloat16():
    assert bench.main([*ON_CPU, "--batches=2", "--dtype=bf16"]) == 0


def test_the_benchmark_of_a_run_measures_its_own_policies(tmp_path, capsys):
    save(tmp_path, {**state_of(image_size=16)[0], "classes": tuple(SHAPES)})
    assert bench.main([*ON_CPU, str(tmp_path), "--batches=2"]) == 0
    assert "its own policies" in " ".join(capsys.readouterr().out.split())


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs the stand-in; a real GPU is there")
def test_the_benchmark_measures_the_gpu_that_is_named(monkeypatch):
    with accelerator():
        named = set()
        for name in ("synchronize", "get_device_name"):
            note = lambda device=None, name=name: named.add((name, str(device))) or 0  # noqa: E731
            monkeypatch.setattr(torch.cuda, name, note)
        there = bench.torch.device("cuda", 1)
        bench.wait(there)
        bench.hardware(there)
    assert {device for _, device in named} == {"cuda:1"}
    assert len(named) == 2


def test_the_benchmark_wants_no_gradient(monkeypatch):
    enabled = []
    see = lambda *_: enabled.append(torch.is_grad_enabled()) or {}  # noqa: E731
    monkeypatch.setattr(bench, "measure", see)
    monkeypatch.setattr(bench, "make_table", lambda found: "")
    bench.main([*ON_CPU, "--batches=2"])
    assert enabled == [False]


REFUSED = {  # a flag -> what is said of it
    "--keep=99": "--keep is 99.0",
    "--depth=9": "depth is 9",
    "--family=vgg": "family is 'vgg'",
    "--batches=0": "--batches",
    "--image-size=0": "--image-size",
    "--seconds=nan": "--seconds",
    "--seconds=inf": "--seconds",
    "nowhere": "nowhere",
    "--device=cuda:99": "--device",
}


@pytest.mark.parametrize("flag", REFUSED)
def test_a_bad_argument_gets_one_line_and_exit_code_2(flag, capsys, monkeypatch):
    monkeypatch.setattr(bench, "measure", lambda *_: pytest.fail("it measures"))
    assert bench.main([flag]) == 2
    error = capsys.readouterr().err
    assert error.startswith("bench.py: ")
    assert REFUSED[flag] in error
    assert error.count("\n") == 1

"""Wall-clock measurements: what is measured is what is claimed, on policies that are as asked for."""

import json
import math
import sys

import pytest
import torch
from helpers import assert_same, seeds
from hypothesis import given
from hypothesis import strategies as st
from runs import state_of

import evaluate
from blockdrop_min import fast
from blockdrop_min.lab.bench import full_network, synthetic_policies, take_turns, untrained
from blockdrop_min.lab.checkpoint import save
from blockdrop_min.lab.shapes import SHAPES

QUICK = ["--bench", "--device", "cpu", "--depth", "8", "--image-size", "16", "--seconds", "0", "--no-compile"]


# ------------------------------------------------------------------------------------------------------- by hand
@given(st.integers(1, 60), st.floats(0, 1), st.integers(1, 20), seeds)
def test_synthetic_policies_keep_as_many_blocks_as_asked_for(num_blocks, share, count, seed):
    keep, generator = share * num_blocks, torch.Generator().manual_seed(seed)
    u = synthetic_policies(count, num_blocks, keep, generator)
    assert u.shape == (count, num_blocks) and set(u.unique().tolist()) <= {0.0, 1.0}
    assert set(u.sum(1).tolist()) <= {math.floor(keep), math.floor(keep) + 1}
    assert not keep.is_integer() or set(u.sum(1).tolist()) == {keep}


def test_a_fractional_number_of_blocks_is_met_on_average_and_every_block_is_kept_as_often():
    u = synthetic_policies(40_000, 33, 24.8, torch.Generator().manual_seed(0))
    assert u.sum(1).mean().item() == pytest.approx(24.8, abs=0.01)
    assert_same(u.mean(0), torch.full((33,), 24.8 / 33), 0.02)


def test_variants_take_turns_and_their_first_call_does_not_count():
    calls = []
    times = take_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, torch.device("cpu"), seconds=0)
    assert {name: len(series) for name, series in times.items()} == {"a": 3, "b": 3}
    assert calls == ["a", "b"] * 4


# ----------------------------------------------------------------------------------------------------- two roads
def test_the_rivals_that_are_measured_compute_the_same():
    model, x = untrained(8, "cifar"), torch.randn(40, 3, 16, 16)
    assert_same(full_network(fast(model.resnet).net)(x), model.resnet(x), 1e-4)


# ------------------------------------------------------------------------------------------------------- programs
def test_the_bench_of_an_untrained_network_prints_and_writes_what_it_measured(tmp_path, capsys):
    assert evaluate.main([*QUICK, "--keep", "2", "--batches", "1", "5", "--json", str(tmp_path / "bench.json")]) == 0
    found, printed = json.loads((tmp_path / "bench.json").read_text()), capsys.readouterr().out
    assert "2 of 3 blocks kept" in printed and "quotient" in printed and found["hardware"] in printed.replace("\n", " ")
    assert [row["batch"] for row in found["rows"]] == [1, 5]
    for row in found["rows"]:
        assert {"full", "full, fast", "masked", "sparse", "fast"} == row["images/s"].keys()
        assert row["best full"] in row["images/s"] and min(row["images/s"].values()) > 0
        assert row["MiB"].keys() == row["images/s"].keys() and (sys.platform != "linux" or row["MiB"]["full"] > 0)
        assert row["quotient"] == pytest.approx(row["speedup"] / row["limit"])
        assert row["quartiles"][0] <= row["speedup"] <= row["quartiles"][1]
        assert 1 < row["limit"] < 2  # two of three blocks, and the policy network


def test_the_bench_of_a_run_measures_its_own_policies(tmp_path, capsys):
    save(tmp_path, {**state_of(image_size=16)[0], "classes": tuple(SHAPES)})
    assert evaluate.main([*QUICK, str(tmp_path), "--batches", "2"]) == 0
    assert "its own policies" in capsys.readouterr().out.replace("\n", " ")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--bench", "--keep", "99"], "--keep is 99.0"),
        (["--bench", "--depth", "9"], "depth is 9"),
        (["--bench", "--family", "vgg"], "family is 'vgg'"),
        (["--bench", "--batches", "0"], "--batches"),
        (["--bench", "--seconds", "nan"], "--seconds"),
        (["--bench", "one", "two"], "one run, not 2"),
        (["--bench", "nowhere"], "nowhere"),
        ([], "--bench"),
    ],
)
def test_bad_arguments_give_one_line_and_exit_code_2(flags, says, capsys):
    assert evaluate.main(flags) == 2
    error = capsys.readouterr().err
    assert error.startswith("evaluate.py: ") and says in error and error.count("\n") == 1

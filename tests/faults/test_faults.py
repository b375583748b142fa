# ruff: noqa: E501
"""Faults that people really make, each planted in a copy of the package: the test that names the broken law must fail.

A fault replaces one piece of text, which must stand in its module exactly once. `python -m pytest tests/faults`
"""

import io
import multiprocessing
import os
import shutil
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PI = "pi = s_bounded * u + (1 - s_bounded) * (1 - u)"
LOSS = "return -(advantage.detach() * log(force_on(pi, free)).sum(1)).mean()"
ENTROPY = "return (-p * log(p) - (1 - p) * log(1 - p)).sum(1).mean()"
SPARSE = "return put(shortcut, index, kept)"
MASKED = "return torch.where(mask, kept, shortcut)"


class Fault(NamedTuple):
    module: str
    before: str
    after: str
    law: str  # test_<file>::test_<name>, without both `test_`


FAULTS = {
    # The policy
    "bounding on one side only": Fault(
        "policy", "return alpha * s + (1 - alpha) * (1 - s)", "return alpha * s", "policy::bounding_treats_keeping_and_dropping_alike"
    ),
    "bounding by clipping": Fault(
        "policy", "return alpha * s + (1 - alpha) * (1 - s)", "return s.clamp(1 - alpha, alpha)", "policy::bounding_by_hand"
    ),
    "greedy drops a tie": Fault("policy", "(s >= threshold)", "(s > threshold)", "policy::greedy_keeps_what_is_likely_and_a_tie"),
    "greedy in place of a sample": Fault(
        "policy",
        "return torch.bernoulli(s_bounded.detach(), generator=generator)",
        "return (s_bounded >= 0.5).to(s_bounded.dtype)",
        "policy::each_block_is_kept_as_often_as_its_probability_says",
    ),
    "sampling without the generator": Fault(
        "policy", "s_bounded.detach(), generator=generator", "s_bounded.detach()", "policy::a_sample_is_float_0_or_1_without_gradient_and_the_same_for_the_same_seed"
    ),
    "probability of keeping, whatever was sampled": Fault(
        "policy", PI, "pi = s_bounded", "policy::the_policy_loss_is_that_of_a_plain_loop"
    ),
    "only kept blocks count": Fault(
        "policy",
        PI,
        "pi = s_bounded**u",
        "gradient::the_expected_gradient_is_that_of_the_expected_reward",
    ),
    "logarithm of u": Fault(
        "policy",
        PI,
        "pi = torch.exp(s_bounded * log(u) + (1 - s_bounded) * log(1 - u))",
        "policy::the_policy_loss_of_two_images_and_three_blocks_by_hand",
    ),
    "loss with the wrong sign": Fault("policy", LOSS, LOSS.replace("-(", "("), "policy::a_better_than_expected_sample_becomes_more_likely"),
    "loss summed over images": Fault(
        "policy", LOSS, LOSS.replace(".mean()", ".sum()"), "policy::both_losses_are_means_so_repeating_the_batch_changes_nothing"
    ),
    "log-probabilities averaged over blocks": Fault(
        "policy", LOSS, LOSS.replace(".sum(1)", ".mean(1)"), "gradient::the_expected_gradient_is_that_of_the_expected_reward"
    ),
    "gradient through the advantage": Fault("policy", LOSS, LOSS.replace(".detach()", ""), "policy::no_gradient_flows_through_the_advantage"),
    "loss of all blocks": Fault(
        "policy", LOSS, LOSS.replace("force_on(pi, free)", "pi"), "curriculum::at_no_epoch_does_any_loss_term_give_a_forced_blocks_logit_a_gradient"
    ),
    "one-sided entropy": Fault("policy", ENTROPY, ENTROPY.replace(" - (1 - p) * log(1 - p)", ""), "policy::the_entropy_treats_keeping_and_dropping_alike"),
    "entropy of all blocks": Fault(
        "policy",
        "p = force_on(s_bounded, free)",
        "p = s_bounded",
        "curriculum::at_no_epoch_does_any_loss_term_give_a_forced_blocks_logit_a_gradient",
    ),
    "entropy averaged over blocks": Fault("policy", ENTROPY, ENTROPY.replace(".sum(1)", ".mean(1)"), "policy::the_entropy_of_a_coin_is_ln_2_and_adds_up_over_blocks"),
    "mask inverted": Fault(
        "policy", LOSS, LOSS.replace("free)", "~free)"), "policy::the_policy_loss_counts_free_blocks_only"
    ),
    "mask behind the logarithm": Fault(
        "policy",
        ENTROPY,
        "p = s_bounded\n    " + ENTROPY.replace("(-p * log(p) - (1 - p) * log(1 - p))", "torch.where(p == p if free is None else free, -p * log(p) - (1 - p) * log(1 - p), 0)"),
        "policy::nan_and_inf_in_a_block_that_is_not_free_stay_out_of_the_losses_and_their_gradients",
    ),
    "logarithm of 0": Fault("policy", "p.clamp_min(torch.finfo(p.dtype).tiny).log()", "p.log()", "policy::losses_and_gradients_are_finite_at_0_a_half_and_1"),
    "advantage [B, 1] broadcasts": Fault(
        "policy",
        ", advantage=(advantage, s_bounded.shape[:1])",
        "",
        "policy::an_advantage_of_another_shape_is_refused_because_it_would_broadcast_unseen",
    ),
    "distribute counts from the end": Fault(
        "policy", "torch.sort(rank, stable=True).indices", "torch.arange(num_blocks).flip(0)", "policy::distribute_keeps_as_many_in_each_segment_unless_one_is_full"
    ),
    "policy network sees the full-size image": Fault(
        "policy", "F.avg_pool2d(x, 2) if self.half else x", "x", "policy::the_policy_net_is_a_resnet_with_a_logit_a_block_and_a_sigmoid"
    ),
    # The reward
    "square forgotten": Fault("reward", "u.mean(1).square()", "u.mean(1)", "reward::two_images_by_hand"),
    "penalty with the wrong sign": Fault("reward", ".square(), -gamma)", ".square(), gamma)", "reward::a_reward_lies_between_0_and_1_or_is_minus_gamma"),
    "reward for kept blocks": Fault("reward", "1 - u.mean(1)", "u.mean(1)", "reward::a_right_prediction_earns_less_with_each_block_added"),
    "number of blocks, not their share": Fault("reward", "u.mean(1)", "u.sum(1)", "reward::right_with_no_block_earns_1_and_with_all_blocks_0"),
    "wrong predictions rewarded": Fault("reward", "torch.where(correct,", "torch.where(~correct,", "reward::the_reward_is_that_of_a_plain_loop"),
    # The curriculum
    "curriculum from the front": Fault(
        "curriculum",
        "torch.arange(num_blocks) >= num_blocks - min(freed, num_blocks)",
        "torch.arange(num_blocks) < min(freed, num_blocks)",
        "curriculum::one_more_block_is_free_in_each_epoch_the_last_one_first",
    ),
    "curriculum late by one": Fault("curriculum", "freed = epoch + 1 if", "freed = epoch if", "curriculum::without_a_length_the_last_t_plus_1_blocks_are_free"),
    "curriculum that never frees all": Fault(
        "curriculum", "-(-num_blocks * (epoch + 1) // epochs)", "num_blocks * epoch // epochs", "curriculum::every_block_is_freed_once_in_order_and_stays_free"
    ),
    "free blocks forced": Fault(
        "curriculum",
        "torch.where(free.to(u.device), u, torch.ones_like(u))",
        "torch.where(free.to(u.device), torch.ones_like(u), u)",
        "curriculum::forcing_on_keeps_the_free_columns_and_writes_1_in_the_others",
    ),
    "forced off": Fault("curriculum", "torch.ones_like(u)", "torch.zeros_like(u)", "curriculum::forcing_on_touches_forced_columns_only"),
    # Skipping
    "ReLU on the dropped path": Fault("resnet", MASKED, MASKED.replace("shortcut)", "F.relu(shortcut))"), "resnet::a_negative_shortcut_passes_a_dropped_block_without_relu"),
    "ReLU on the dropped path, sparse": Fault("resnet", SPARSE, "return F.relu(put(shortcut, index, kept))", "resnet::masked_is_sparse"),
    "shortcut dropped with the block": Fault("resnet", MASKED, MASKED.replace("shortcut)", "shortcut * 0)"), "resnet::a_dropped_block_gives_its_shortcut"),
    "product in place of where": Fault(
        "resnet", MASKED, "return mask * kept + ~mask * shortcut", "resnet::inf_and_nan_in_a_block_that_all_drop_reach_neither_output_nor_gradient"
    ),
    "dropped images pass the weights": Fault(
        "resnet",
        "x if block.training else torch.where(mask, x, torch.zeros_like(x))",
        "x",
        "resnet::an_image_whose_dropped_block_would_overflow_does_not_spoil_the_blocks_gradient",
    ),
    "gradient of a block that nobody keeps": Fault(
        "resnet", " and bool(keep.any())", "", "resnet::inf_and_nan_in_a_block_that_all_drop_reach_neither_output_nor_gradient"
    ),
    "images put back in another order": Fault("resnet", SPARSE, "return put(shortcut, index.flip(0), kept)", "resnet::masked_is_sparse"),
    "dropped images run": Fault("resnet", "index = keep.nonzero()", "index = (~keep).nonzero()", "resnet::a_batch_is_a_slow_loop_over_images_and_blocks_with_an_if"),
    "policies counted from the last block": Fault("resnet", "keep.unbind(1)", "keep.flip(1).unbind(1)", "resnet::dropping_a_block_is_a_network_built_without_it"),
    "no ReLU after the sum": Fault(
        "resnet", "kept = F.relu(take(shortcut, index) + block.residual(take(x, index)))", "kept = take(shortcut, index) + block.residual(take(x, index))", "resnet::masked_is_sparse"
    ),
    "zero channels in front": Fault(
        "resnet", "(0, 0, 0, 0, 0, self.new_channels)", "(0, 0, 0, 0, self.new_channels, 0)", "resnet::the_cifar_shortcut_averages_four_pixels_and_appends_zero_channels"
    ),
    "stride on the first convolution of a bottleneck": Fault(
        "resnet", "conv(width, width, 3, stride), nn.BatchNorm2d(width)", "conv(width, width, 3, 1), nn.BatchNorm2d(width)", "resnet::torchvisions_weights_give_torchvisions_logits"
    ),
    # Training
    "baseline from the sampled policy": Fault(
        "training",
        "reward(u_greedy, correct_greedy, gamma)",
        "reward(u, correct, gamma)",
        "training::rewards_and_advantages_equal_a_loop_over_images",
    ),
    "two policies share one block too many": Fault(
        "training", "long().cumprod(0).sum())", "long().cumprod(0).sum()) + 1", "training::what_two_policies_share_runs_once"
    ),
    "advantage with the wrong sign": Fault("training", "A = R - R_greedy", "A = R_greedy - R", "training::rewards_and_advantages_equal_a_loop_over_images"),
    "advantage relative to the mean of the batch": Fault(
        "training", "A = R - R_greedy", "A = R - R.mean()", "gradient::a_policy_step_gives_it_in_expectation_over_what_it_samples"
    ),
    "bounding forgotten in the log-probability": Fault(
        "training", "policy_loss(s_bounded, u, A, free)", "policy_loss(s, u, A, free)", "training::the_curriculum_loss_is_the_policy_loss_less_the_entropy_bonus"
    ),
    "entropy punished": Fault("training", "- beta * entropy", "+ beta * entropy", "training::the_curriculum_loss_is_the_policy_loss_less_the_entropy_bonus"),
    "entropy bonus outside the curriculum": Fault(
        "training", "entropy(s_bounded, free)", "entropy(s_bounded)", "training::no_loss_term_gives_a_forced_blocks_logit_a_gradient"
    ),
    "forced blocks sampled": Fault(
        "training", "force_on(sample(s_bounded, generator), free)", "sample(s_bounded, generator)", "training::forced_blocks_are_kept_by_the_sample_and_by_the_baseline"
    ),
    "forced blocks dropped by the baseline": Fault(
        "training", "force_on(greedy(s.detach()), free)", "greedy(s.detach())", "training::forced_blocks_are_kept_by_the_sample_and_by_the_baseline"
    ),
    "BatchNorm updated by the greedy pass": Fault("training", "    resnet.eval()\n", "", "training::the_greedy_pass_of_finetuning_updates_no_batchnorm"),
    "ResNet in training mode in the curriculum": Fault(
        "training", '"curriculum": (False, True)', '"curriculum": (True, True)', "training::each_stage_trains_its_networks_and_freezes_the_others"
    ),
    "ResNet left in eval mode": Fault("training", "    resnet.train(training)\n", "", "training::looking_what_is_right_leaves_the_mode_as_it_was"),
    "no cross-entropy in finetuning": Fault(
        "training", "loss = loss + F.cross_entropy(logits, targets)", "loss = loss + 0", "training::finetuning_adds_the_cross_entropy_of_the_sampled_pass_and_of_a_share_of_full_passes"
    ),
    "policy settles in training mode": Fault(
        "training", "model.policy.eval()(x)", "model.policy(x)", "training::a_settled_step_leaves_the_policy_network_as_it_is"
    ),
    "policy settles on all blocks": Fault(
        "training", "logits = model.resnet(x, u, execute=\"sparse\")\n    correct", "logits = model.resnet(x)\n    correct",
        "training::a_settled_step_is_cross_entropy_under_the_policies_that_the_model_has_in_use"
    ),
    "argmax over the batch": Fault(
        "training", "resnet.head(x).argmax(1) ==", "resnet.head(x).argmax(0)[0] ==", "training::what_is_right_under_a_policy_equals_one_image_at_a_time"
    ),
    # Data, cost and measuring
    "labels shuffled against images": Fault(
        "data", "yield self.images[index], self.labels[index]", "yield self.images[index], self.labels[index.flip(0)]", "data::batches_give_each_image_once_in_the_order_asked_for"
    ),
    "validation images in the training set": Fault(
        "data", "train.subset(order[val_images:])", "train.subset(order)", "data::the_split_is_disjoint_and_covers_the_training_set"
    ),
    "all images of a batch flipped alike": Fault(
        "data", "torch.where(flip[:, None] < 0.5,", "torch.where(flip[:1, None] < 0.5,", "data::every_image_of_a_batch_is_moved_by_draws_of_its_own"
    ),
    "augmentation on the validation set": Fault(
        "report", "model.prepare(centre_crop(x, crop))", "model.prepare(centre_crop(x, crop).flip(3))", "report::running_the_policy_equals_one_image_at_a_time_through_the_model"
    ),
    "multiply-adds counted once": Fault("cost", "return 2 * kernel", "return kernel", "cost::the_published_networks_cost_what_the_table_says"),
    "shortcuts not counted": Fault(
        "cost", "fixed += chain_cost(block.downsample.children(), size)[0]", "fixed += 0", "cost::the_published_networks_cost_what_the_table_says"
    ),
    "FLOPs without the policy network": Fault(
        "report", "(policy_cost(model.policy, image_size) if looks else 0)", "0", "report::flops_are_those_of_the_kept_blocks_and_of_the_policy_network"
    ),
    "pixels not scaled": Fault("model", "x.float() / 255", "x.float()", "model::uint8_images_are_scaled_to_1_and_normalised_by_channel"),
    "every block runs in use": Fault("model", '"masked" if self.training else "sparse"', '"masked"', "cost::a_blockdrop_costs_its_policy_net_and_the_blocks_it_keeps"),
}  # fmt: skip


def run_law(name, folder):
    """Plants the fault in a copy of the project and runs the test that names its law. Returns (exit code, output)."""
    fault, copy = FAULTS[name], Path(folder) / str(list(FAULTS).index(name))
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "__pycache__", "runs", "data", "faults"))
    module = copy / "blockdrop_min" / f"{fault.module}.py"
    source = module.read_text()
    assert source.count(fault.before) == 1, f"{fault.before!r} stands {source.count(fault.before)} times in {fault.module}.py"
    module.write_text(source.replace(fault.before, fault.after))
    os.chdir(copy)
    os.environ.update(CI="true", OMP_NUM_THREADS="1")
    sys.path[:] = [str(copy), *(path for path in sys.path if path not in ("", str(ROOT)))]
    file, test = fault.law.split("::")
    output = io.StringIO()
    options = ["-q", "-p", "no:cacheprovider", "--tb=line", "--hypothesis-profile=faults"]
    with redirect_stdout(output), redirect_stderr(output):
        code = pytest.main([*options, f"tests/test_{file}.py::test_{test}"])
    shutil.rmtree(copy)
    return int(code), output.getvalue()


@pytest.fixture(scope="module")
def runs(tmp_path_factory, request):
    """The runs of all chosen faults: name -> result. Each has a process of its own, forked from one that has imported torch."""
    folder = tmp_path_factory.mktemp("faults")
    asked = {item.name for item in request.session.items}
    chosen = [name for name in FAULTS if f"test_the_law_catches[{name}]" in asked]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torchvision", "pytest", "hypothesis", "rich.live"])
    with context.Pool(os.cpu_count(), maxtasksperchild=1) as pool:
        yield {name: pool.apply_async(run_law, (name, folder)) for name in chosen}


@pytest.mark.parametrize("name", FAULTS)
def test_the_law_catches(name, runs):
    code, output = runs[name].get(timeout=300)
    assert code == 1, f"exit code {code}, not that of a failed test:\n{output[-1500:]}"


def test_the_notes_list_every_fault_with_the_test_that_catches_it():
    rows = [f"| {name} | {fault.law.replace('::', ': ').replace('_', ' ')} |" for name, fault in FAULTS.items()]
    table = "\n".join(["| fault | caught by, test file: test |", "|---|---|", *rows])
    assert table in (ROOT / "NOTES.md").read_text(), f"the table in NOTES.md must be:\n{table}"


@pytest.mark.parametrize("file", ["README.md", "NOTES.md"])
def test_the_documents_count_the_faults(file):
    assert f"plants {len(FAULTS)} faults" in (ROOT / file).read_text()

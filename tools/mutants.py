"""Faults put into the package one at a time, in a copy: does a test notice each?

    python tools/mutants.py [--only N ...] [--jobs 1]

Each entry of `MUTANTS` is a file of `ddpm_nb`, a text that stands in it once, what to put in its
place, and the tests that should then fail: `wired` is tests/test_wired.py, `data::name` the test
`test_name` in tests/test_data.py. Exit status 1 if a fault survives, or a text is no longer there.
"""
import argparse
import contextlib
import importlib
import io
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import hypothesis
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
MUTANTS: list[tuple[str, str, str, str]] = []
SLOW = ("accelerate", "diffusers", "einops", "PIL.Image", "safetensors.torch")


def faults(file, *entries):
    "Add the faults of one file."
    MUTANTS.extend((file, *entry) for entry in entries)


faults(
    "schedules.py",
    ("self.alphas: Tensor = 1 - self.betas", "self.alphas: Tensor = 1 - self.betas / 2",
     "diffusion::posterior_equals_bayes_on_a_grid"),
    ("-torch.expm1(self.log_alpha_bars)", "1 - self.log_alpha_bars.exp()",
     "schedules::tables_equal_50_digit_arithmetic"),
    ("_before(self.alpha_bars, 1.0)", "_before(self.alpha_bars, 0.0)",
     "schedules::tables_equal_50_digit_arithmetic"),
    ("_before(self.one_minus_alpha_bars, 0.0)", "_before(self.one_minus_alpha_bars, 1.0)",
     "schedules::tables_equal_50_digit_arithmetic"),
    ("return self.log_alpha_bars - self.", "return self.log_alpha_bars + self.",
     "schedules::tables_equal_50_digit_arithmetic"),
    ("_even(beta_start**0.5, beta_end**0.5, T) ** 2", "_even(beta_start, beta_end, T)",
     "schedules::betas_equal_the_official_formulas"),
    ("torch.arange(T, 0, -1,", "torch.arange(T + 1, 1, -1,", "schedules::jsd_falls_in_equal"
     "_steps_to_zero"),
    ("betas.clamp(max=max_beta)", "betas", "schedules::cosine_clips_the_last_beta_alone"),
    ("s: float = 0.008", "s: float = 0.08", "schedules::tables_equal_those_of_diffusers"),
    ("(i * s.T / steps).round()", "(i * s.T / steps).floor()",
     "schedules::respaced_times_equal_diffusers_trailing_ones"),
    ("self.timesteps[last]", "last", "schedules::respaced_twice_points_into_the_first"),
    ("v.detach().to(dtype, copy=True)", "v.detach().to(dtype)", "schedules::betas_are_copied"))

faults(
    "diffusion.py",
    ("sqrt_betas=schedule.betas.sqrt()", "sqrt_betas=schedule.betas",
     "diffusion::jump_equals_walking_there"),
    ("(schedule.log_alpha_bars / 2).exp()", "schedule.log_alpha_bars.exp()",
     "diffusion::q_sample_equals_numpy"),
    ("schedule.one_minus_alpha_bars.sqrt()", "schedule.one_minus_alpha_bars",
     "diffusion::q_sample_equals_numpy"),
    ("variance = s.betas * s.one_minus_alpha_bars_prev / s.one_minus_alpha_bars",
     "variance = s.betas * 1.0", "diffusion::posterior_equals_bayes_on_a_grid"),
    ("s.alpha_bars_prev.sqrt() * s.betas / total", "s.alpha_bars_prev * s.betas / total",
     "diffusion::posterior_equals_bayes_on_a_grid"),
    ("posterior_x_t_coef=s.alphas.sqrt()", "posterior_x_t_coef=s.alphas",
     "diffusion::posterior_equals_bayes_on_a_grid"),
    ("variance[1] if s.T > 1", "variance[-1] if s.T > 1", "diffusion::posterior_at_index_0_is_the"
     "_data_and_its_log_variance_that_of_index_1"),
    ("return table[t].to(x.dtype)", "return table[t.clamp(min=1)].to(x.dtype)",
     "diffusion::extract_has_one_entry_for_each_item"),
    ("return torch.randn_like(x)", "return torch.rand_like(x)", "diffusion"),
    ("tables[name] = table.to(device)", "tables[name] = fn(table)",
     "diffusion::tables_keep_their_precision"),
    ("noise.normal_(generator=one)", "noise.normal_(generator=None)",
     "diffusion::noise_repeats_with_its_generator"))

faults(
    "bound.py",
    ("0.5 * (torch.expm1(d) - d", "0.5 * (torch.expm1(d) + d",
     "bound::kl_equals_torch_distributions_and_is_never_negative"),
    ("torch.exp(-log_variance2)", "torch.exp(-log_variance1)",
     "bound::kl_equals_torch_distributions_and_is_never_negative"),
    ("math.log(2 * math.pi)) - log_scales", "math.log(2 * math.pi)) + log_scales",
     "bound::log_likelihood_equals_scipy"),
    ("else nats) / math.log(2)", "else nats)", "bound::bits_per_dim_averages_all_but_the_batch"),
    ("((2 * level - 1) / 255 - 1 - means)", "((2 * level - 1) / 256 - 1 - means)",
     "bound::decoder_sums_to_one_for_any_mean_and_scale"),
    ("_log_ndtr(upper), _log_ndtr(-lower))", "_log_ndtr(-lower), _log_ndtr(upper))",
     "bound::decoder_sums_to_one_for_any_mean_and_scale"),
    ("half_width < 1e-5", "half_width < 1e-1", "bound::decoder_equals_50_digit_arithmetic"),
    ("process.sqrt_alpha_bars[-1]", "process.sqrt_alpha_bars[0]",
     "bound::prior_equals_torch_distributions"),
    ("if steps.start == 0: bits", "if steps.stop == process.T: bits",
     "bound::every_term_equals_brute_force"),
    ("log_variance.expand_as(x0) / 2)", "log_variance.expand_as(x0))",
     "bound::every_term_equals_brute_force"),
    ("total=prior + vb.sum(1)", "total=vb.sum(1)", "bound::every_term_equals_brute_force"),
    ("gaussian_kl(true_mean, true_log_variance, mean, log_variance)",
     "gaussian_kl(mean, log_variance, true_mean, true_log_variance)",
     "bound::every_term_equals_brute_force"),
    ("if decoder == \"discretized\": _check_levels(x0)", "",
     "bound::data_off_the_grid_of_the_discretized_decoder_are_refused"))

faults(
    "objective.py",
    ("large[0] = self.posterior_log_variance[0].exp()", "pass",
     "objective::fixed_large_takes_the_posterior_variance_of_index_1_at_index_0"),
    ("return (output - follow)", "return (output + follow)",
     "objective::every_target_gives_x0_back"),
    ("return (x_t - noise)", "return (x_t + noise)", "objective::every_target_gives_x0_back"),
    ("cos * noise - sin * x0", "cos * noise + sin * x0", "objective::every_target_gives_x0_back"),
    ("cos * x_t - sin * output", "cos * x_t + sin * output",
     "objective::every_target_gives_x0_back"),
    ("if clip: x0 = x0.clamp(-1, 1)", "if clip: x0 = x0.clamp(-2, 2)",
     "objective::the_mean_and_x0_agree_with_diffusers"),
    ("if asked.says_mean: mean =", "if False: mean =",
     "objective::clipping_leaves_the_mean_of_a_mu_network_alone"),
    ("answer, x_t, self.network_t[t])", "answer, x_t, t.clamp(max=3))",
     "sampling::the_bound_of_fewer_steps_is_the_same_for_all_predictions"),
    ("d.network_t[t], (said + 1) / 2", "d.network_t[t], said",
     "objective::learned_range_runs_from_small_to_large"),
    ("0.001 * bound", "0.01 * bound",
     "objective::hybrid_trains_the_mean_by_simple_and_the_variance_by_the_bound"),
    ("torch.cat([answer.detach(), said], 1)", "torch.cat([answer, said], 1)",
     "objective::hybrid_trains_the_mean_by_simple_and_the_variance_by_the_bound"),
    ("return d.T * torch.where", "return torch.where",
     "objective::vlb_loss_and_gradient_equal_torch_distributions"),
    ("torch.where(t == 0, nll, kl)", "torch.where(t <= 1, nll, kl)",
     "objective::vlb_loss_and_gradient_equal_torch_distributions"),
    ("t = torch.randint(self.T, (len(x0),)", "t = torch.randint(self.T - 1, (len(x0),)",
     "objective::every_t_is_drawn_as_often_as_any_other"),
    ("t = torch.randint(self.T, (len(x0),)", "t = torch.randint(1, self.T, (len(x0),)",
     "objective::every_t_is_drawn_as_often_as_any_other"),
    ("error.pow(2).unsqueeze(-1)", "error.abs().unsqueeze(-1)",
     "objective::simple_loss_and_gradient_equal_a_loop_over_items"),
    ("self.read(model(x_t, self.timesteps[t]),", "self.read(model(x_t, t),",
     "sampling::a_respaced_sampler_tells_the_model_the_original_times"),
    ("(2 * sigma2 * s.alphas * s.one", "(2 * sigma2 * s.one",
     "objective::the_same_prediction_gives_one_bound_in_all_parameterizations"),
    ("\"hybrid\" if learned else \"simple\"", "\"vlb\" if learned else \"simple\"",
     "wired::the_loss_where_none_is_named_trains_all_that_the_network_says"))

faults(
    "sampling.py",
    ("if i > 0: x = x +", "if True: x = x +", "sampling::the_last_step_adds_no_noise"),
    ("(step.log_variance / 2).exp()", "step.log_variance.exp()",
     "sampling::ancestral_sampling_is_algorithm_2_line_by_line"),
    ("torch.lerp(a, b, weight)", "torch.lerp(a, b, weight**2)",
     "sampling::interpolation_decodes_the_weighted_mean_of_the_latents"),
    ("torch.lerp(a, b, weight)", "torch.lerp(b, a, weight)",
     "sampling::interpolation_decodes_the_weighted_mean_of_the_latents"),
    ("fresh2 = eta**2 *", "fresh2 = eta *", "sampling::ddim_agrees_with_diffusers"),
    ("math.sqrt(max(sigmas2_prev[i] - fresh2, 0))", "math.sqrt(sigmas2_prev[i])",
     "sampling::ddim_keeps_the_marginals_of_the_forward_process"),
    ("h / (2 * last_h)", "h / last_h", "sampling::dpm_solver_agrees_with_diffusers"),
    ("last_x0, last_h = x0, h", "last_x0, last_h = x0, 1.0",
     "sampling::dpm_solver_agrees_with_diffusers"),
    ("return T - 1 if start is None", "return T - 2 if start is None",
     "sampling::callback_sees_each_state_once_in_order"),
    ("    watched.check()", "    pass",
     "sampling::samples_from_a_network_that_is_not_finite_are_an_error"))

faults(
    "unet.py",
    ("* i / (half - shift)", "* i / half", "unet::the_clock_is_that_of_the_official_code"),
    ("[cos, sin] if cosines_first", "[cos, sin] if not cosines_first",
     "unet::the_clock_is_that_of_the_official_code"),
    ("_NEAR_ZERO = 1e-10", "_NEAR_ZERO = 1.0", "unet::a_fresh_network_says_nearly_nothing"),
    ("else [0, 1, 0, 1]", "else [1, 0, 1, 0]",
     "unet::downsampling_pads_right_and_bottom_only"),
    ("self.conv2(self.dropout(F.silu(self.norm2(h))))",
     "self.dropout(self.conv2(F.silu(self.norm2(h))))",
     "unet::dropout_stands_before_the_second_convolution"),
    ("dropout: float = 0.1 ", "dropout: float = 0.2 ",
     "wired::the_papers_network_has_the_sizes_that_the_paper_names"),
    ("gain=math.sqrt(scale)", "gain=scale",
     "unet::start_is_variance_scaling_with_mean_fan_and_zero_biases"),
    ("mode=\"nearest\"", "mode=\"bilinear\"",
     "unet::upsampling_equals_repeat_then_convolution"),
    ("nn.GroupNorm(config.groups, c, config.norm_eps)", "nn.GroupNorm(config.groups, c, 1e-3)",
     "unet::output_and_every_gradient_equal_those_of_diffusers"),
    ("time = F.silu(self.time(t))", "time = self.time(t)",
     "unet::output_and_every_gradient_equal_those_of_diffusers"),
    ("\"b (n d) h w -> b n (h w) d\"", "\"b (d n) h w -> b n (h w) d\"",
     "unet::attention_equals_the_plain_formula"))

faults(
    "data.py",
    ("x.float() / 127.5 - 1", "x.float() / 128 - 1",
     "data::scaled_values_are_the_centres_of_the_256_bins_of_the_decoder"),
    ("* 127.5).round()", "* 127.5).floor()", "data::to_uint8_takes_the_nearest_value_and_clips"),
    ("margin = size // 8", "margin = size // 4",
     "data::digits_are_enlarged_by_cubic_convolution_and_framed_in_black"),
    ("mode=\"bicubic\"", "mode=\"bilinear\"",
     "data::digits_are_enlarged_by_cubic_convolution_and_framed_in_black"),
    ("else slice(1500, None)", "else slice(1500)", "data::digits_parts_make_up_the_whole"),
    ("\"airplane\", \"automobile\", \"bird\"", "\"airplane\", \"bird\", \"automobile\"",
     "data::the_classes_are_in_the_archives_own_order"),
    ("if train else _TEST_FILES)]", "if train else _TRAIN_FILES)]",
     "wired::cifar10s_recipe_measures_on_test_images"),
    ("records[:, 0].long()", "records[:, 1].long()",
     "data::cifar10_is_read_from_its_folder_labels_first_then_the_three_colours"),
    ("generator=_seeded(seed, number)", "generator=_seeded(0, number)", "wired"),
    ("generator=_seeded(seed, number)", "generator=_seeded(seed, 0)", "wired"),
    ("_seeded(seed, \"flip\", step)", "_seeded(0, \"flip\", step)", "wired"),
    ("_seeded(seed, \"flip\", step)", "_seeded(seed, \"flip\", 0)", "wired"),
    ("x.flip(-1)", "x.flip(-2)", "wired"),
    ("        if self.flip:", "        if False:", "wired"),
    ("device=\"cpu\") < 0.5", "device=\"cpu\") < 0.6", "wired"),
    ("math.pi * (1 + 2 * torch.rand", "math.pi * (1 + torch.rand",
     "data::swiss_roll_lies_on_its_spiral_up_to_the_noise"),
    ("noise: float = 0.05", "noise: float = 0.06", "wired::toys_without_options_are_as_documented"),
    ("return x + noise * torch", "return x + 0.5 * noise * torch",
     "data::swiss_roll_lies_on_its_spiral_up_to_the_noise"),
    ("(torch.arange(whole_number(\"k\", k)) - (k - 1) / 2)", "(torch.arange(k) - k / 2)",
     "wired::toys_without_options_are_as_documented"),
    ("radius: float = 1.5", "radius: float = 1.4", "wired::toys_without_options_are_as_documented"),
    ("std: float = 0.1)", "std: float = 0.2)", "wired::toys_without_options_are_as_documented"),
    ("spacing: float = 0.75", "spacing: float = 0.7",
     "wired::toys_without_options_are_as_documented"),
    ("std: float = 0.08", "std: float = 0.1", "wired::toys_without_options_are_as_documented"),
    ("alpha_bar * self.std**2 + 1 - alpha_bar", "self.std**2 + 1 - alpha_bar",
     "data::noised_mixture_is_what_the_forward_process_makes_of_it"),
    ("self.labels[self.indices(step)]", "self.labels[self.indices(step + 1)]",
     "data::labels_stay_with_their_images"))

faults(
    "training.py",
    ("config.grad_clip or math.inf)", "math.inf)", "wired"),
    ("config.grad_clip or math.inf)", "config.grad_clip or 1.0)", "wired"),
    ("state.optimizer.step()" + 44 * " " + "# ... and the descent\n"
     "        state.ema.update(net, step)",
     "state.ema.update(net, step)\n        state.optimizer.step()", "wired"),
    ("state.ema.update(net, step)", "state.ema.update(net)", "wired"),
    ("state.ema.update(net, step)", "pass", "wired"),
    ("EMA(net, config.ema_decay, config.ema_warmup)", "EMA(net, 0.5, config.ema_warmup)", "wired"),
    ("EMA(net, config.ema_decay, config.ema_warmup)", "EMA(net, config.ema_decay)", "wired"),
    ("decay, (1 + step) / (10 + step)", "decay, (1 + step) / (11 + step)", "wired"),
    ("[*model.parameters()], 1 - decay)", "[*model.parameters()], decay)", "wired"),
    ("mine.copy_(theirs)", "pass", "wired::the_averages_buffers_are_the_networks_own"),
    ("copy.deepcopy(model).eval()", "copy.deepcopy(model)", "training"),
    ("_hashed((\"t and noise\", seed, step))", "_hashed((\"t and noise\", 0, step))", "wired"),
    ("_hashed((\"t and noise\", seed, step))", "_hashed((\"t and noise\", seed, 0))", "wired"),
    ("_hashed((\"dropout\", seed, step, rank))", "_hashed((\"dropout\", 0, step, rank))", "wired"),
    ("_hashed((\"dropout\", seed, step, rank))", "_hashed((\"dropout\", seed, 0, rank))", "wired"),
    ("for g in generators: g.manual_seed(seed)", "pass", "wired"),
    ("g.set_state(state)", "pass",
     "training::other_users_of_torchs_random_numbers_do_not_matter_and_are_left_alone"),
    ("t = torch.randint(T, (len(x0) * world,)", "t = torch.randint(T - 1, (len(x0) * world,)",
     "wired training::every_t_is_drawn_alike_and_the_noise_is_standard_normal"),
    ("param_groups: group[\"lr\"] = lr", "param_groups: group[\"lr\"] = config.lr", "wired"),
    ("lr = learning_rate(step, config)", "lr = learning_rate(step + 1, config)", "wired"),
    ("min((step + 1) / c.warmup, 1)", "min(step / c.warmup, 1)", "wired"),
    ("(c.steps - step) / c.cooldown", "(c.steps - step - 1) / c.cooldown", "wired"),
    ("return c.lr * up * down", "return c.lr * up", "wired"),
    ("state.optimizer.zero_grad()", "pass", "wired"),
    ("    net.train()", "    net.eval()", "wired"),
    ("losses.mean().backward()", "losses.sum().backward()", "wired"),
    ("state.loss_by_t.add(t, losses)", "pass",
     "runs::a_trainer_fills_the_histogram_with_the_losses_of_its_own_draws"),
    ("math.exp(-1 / memory)", "1.0", "training::loss_by_t_is_a_mean_that_forgets"),
    ("ema_decay: float = 0.9999 ", "ema_decay: float = 0.999 ",
     "training::defaults_are_the_papers"),
    ("weights, config.lr, fused=fused)", "weights, config.lr, (0.5, 0.999), fused=fused)",
     "runs::the_step_is_algorithm_1_written_by_hand"))

faults(
    "engine/runs.py",
    ("a.backward(of_part.mean() / self.parts)", "a.backward(of_part.mean())", "wired"),
    ("v.chunk(self.parts)", "v.chunk(1)", "wired"),
    ("_labelled(self.ema.model,", "_labelled(self.model,",
     "wired::grids_and_samples_are_of_the_averaged_weights_and_the_sampler"),
    ("config.batch_size, config.seed, config.flip,", "config.batch_size, 0, config.flip,",
     "wired"),
    ("config.batch_size, config.seed, config.flip,", "config.batch_size, config.seed, False,",
     "wired"),
    ("manual_seed(seed), **options}", "manual_seed(0), **options}",
     "runs::samples_are_drawn_on_time_and_leave_the_run_as_it_was"),
    ("min(c.sample_steps, self.diffusion.T)", "min(2, self.diffusion.T)",
     "wired::grids_and_samples_are_of_the_averaged_weights_and_the_sampler"),
    ("\"ema\" if averaged else \"model\"", "\"model\" if averaged else \"ema\"",
     "wired::what_is_loaded_are_the_averaged_weights_unless_the_last_are_asked_for"),
    ("Accelerator(mixed_precision=mixed,", "Accelerator(mixed_precision=\"no\",", "wired"),
    ("run.ema.model.load_state_dict(files[\"ema\"])",
     "run.ema.model.load_state_dict(files[\"model\"])",
     "runs::a_run_killed_and_resumed_equals_one_that_never_stopped_to_the_bit"),
    ("_load_moments(run.model, run.state.optimizer, files[\"optimizer\"])", "pass",
     "runs::a_run_killed_and_resumed_equals_one_that_never_stopped_to_the_bit"),
    ("{**state[\"data\"], \"step\": step}", "{**state[\"data\"], \"step\": 0}",
     "runs::a_run_killed_and_resumed_equals_one_that_never_stopped_to_the_bit"),
    ("run.loss_by_t.sums.copy_(log[\"sums\"])", "pass",
     "runs::a_run_killed_and_resumed_equals_one_that_never_stopped_to_the_bit"),
    ("rate * images)", "rate)", "runs::the_rate_in_the_log_is_that_of_its_own_updates"),
    ("how[\"prediction\"], how[\"variance\"],", "how[\"prediction\"], \"fixed_large\",",
     "wired::what_is_loaded_has_the_diffusion_that_it_was_trained_with"))

faults(
    "engine/recipes.py",
    ("return cifar10(root, train, download)", "return cifar10(root, True, download)",
     "wired::cifar10s_recipe_measures_on_test_images"),
    ("load(train, self.root,", "load(True, self.root,",
     "wired::cifar10s_recipe_measures_on_test_images"),
    ("(held != train).nonzero()", "(held == train).nonzero()",
     "recipes::about_every_tenth_image_of_a_folder_is_held_out_with_its_label"),
    ("torch.manual_seed(self.train.seed)", "torch.manual_seed(0)",
     "recipes::a_network_has_its_recipes_seed_and_leaves_the_global_random_numbers_alone"),
    ("images, held_out = self.images(True,", "images, held_out = self.images(False,",
     "wired::a_recipes_trainer_is_made_of_the_recipes_parts"),
    ("_LINEAR = {\"schedule\": \"linear\", \"T\": 1000}",
     "_LINEAR = {\"schedule\": \"linear\", \"T\": 500}",
     "recipes::the_papers_recipe_is_the_papers"),
    ("return {k: v for k, v in diffusion.items() if k in options} | changes",
     "return changes | {k: v for k, v in diffusion.items() if k in options}",
     "wired::a_recipes_trainer_is_made_of_the_recipes_parts"))

faults(
    "engine/pretrained.py",
    ("(\"variance_type\", \"fixed_small\", variances)",
     "(\"variance_type\", \"fixed_large\", variances)",
     "wired::keys_that_a_saved_scheduler_leaves_out_mean_what_diffusers_takes_them_for"),
    ("(\"prediction_type\", \"epsilon\", predictions)",
     "(\"prediction_type\", \"sample\", predictions)",
     "wired::keys_that_a_saved_scheduler_leaves_out_mean_what_diffusers_takes_them_for"),
    ("variances[\"fixed_small_log\"] = \"fixed_small\"",
     "variances[\"fixed_small_log\"] = \"fixed_large\"",
     "wired::keys_that_a_saved_scheduler_leaves_out_mean_what_diffusers_takes_them_for"),
    ("values.get(\"beta_start\", 1e-4)", "values.get(\"beta_start\", 1e-3)",
     "wired::keys_that_a_saved_scheduler_leaves_out_mean_what_diffusers_takes_them_for"),
    ("values.get(\"beta_end\", 0.02)", "values.get(\"beta_end\", 0.2)",
     "wired::keys_that_a_saved_scheduler_leaves_out_mean_what_diffusers_takes_them_for"),
    ("values.get(\"num_train_timesteps\", 1000)", "values.get(\"num_train_timesteps\", 100)",
     "wired::keys_that_a_saved_scheduler_leaves_out_mean_what_diffusers_takes_them_for"),
    ("\"scaled_linear\": NoiseSchedule.quadratic", "\"scaled_linear\": NoiseSchedule.linear",
     "wired::keys_that_a_saved_scheduler_leaves_out_mean_what_diffusers_takes_them_for"),
    ("if not values.get(\"clip_sample\", True):", "if False:",
     "wired::keys_that_a_saved_scheduler_leaves_out_mean_what_diffusers_takes_them_for"),
    ("(\"attention_head_dim\", 8)", "(\"attention_head_dim\", None)",
     "wired::keys_that_a_saved_network_leaves_out_mean_what_diffusers_takes_them_for"),
    ("(\"norm_num_groups\", 32)", "(\"norm_num_groups\", 16)",
     "wired::keys_that_a_saved_network_leaves_out_mean_what_diffusers_takes_them_for"),
    ("(\"layers_per_block\", 2)", "(\"layers_per_block\", 1)",
     "wired::keys_that_a_saved_network_leaves_out_mean_what_diffusers_takes_them_for"),
    ("(\"dropout\", 0.0)", "(\"dropout\", 0.1)",
     "wired::keys_that_a_saved_network_leaves_out_mean_what_diffusers_takes_them_for"),
    ("\"query\": \"to_q\", \"key\": \"to_k\"", "\"query\": \"to_k\", \"key\": \"to_q\"",
     "pretrained::the_old_names_of_attention_are_read"),
    ("{} if (d.loss_type, d.decoder) == usual else ours", "{}",
     "pretrained::every_diffusion_comes_back_to_the_last_bit"))

faults(
    "compression.py",
    ("d.p_mean_variance(model, x, t, clip)", "d.p_mean_variance(model, x, t, True)",
     "compression::sender_and_receiver_clip_the_guess_or_leave_it"),
    ("_at(i, x), clip)", "_at(i, x), True)",
     "compression::sender_and_receiver_clip_the_guess_or_leave_it"),
    ("terms[\"mse\"].sqrt() * 127.5", "terms[\"mse\"].sqrt() * 255",
     "compression::rate_and_distortion_are_those_of_algorithm_3_done_by_hand"),
    ("paid.flip(1).cumsum(1).flip(1)", "paid.cumsum(1)",
     "compression::rate_and_distortion_are_those_of_algorithm_3_done_by_hand"),
    ("_to_double(log_q - log_p)", "_to_double(log_q)",
     "compression::minimal_random_coding_gives_the_moments_of_q"),
    ("* 2**24).long() + 1", "* 2**24).long()", "compression::what_is_sent_arrives_exactly"),
    ("* starts[-1] // (self.width << k)) - 1", "* starts[-1] // (self.width << k))",
     "compression::what_is_written_is_read_and_costs_its_share"))

faults(
    "engine/files.py",
    ("try: os.fsync(handle)", "try: pass",
     "wired::what_is_written_is_synced_with_its_folder"),
    ("        _remove(part)\n        raise", "        raise",
     "files::a_block_that_fails_leaves_what_was_there_and_nothing_else"),
    ("if old and not path.exists(): os.rename(old, path)", "pass",
     "files::a_folder_that_cannot_take_its_place_gives_it_back"),
    ("path = user_path(path).resolve() ", "path = user_path(path) ",
     "files::a_link_is_written_through_and_what_is_no_file_is_not_replaced"),
    ("for p in made:", "for p in ():",
     "files::a_folder_that_cannot_be_written_is_told_and_a_probe_leaves_nothing"),
    ("        if self.depth: return", "        pass",
     "files::a_lock_may_be_taken_again_by_its_holder_and_is_free_at_the_end"))

faults(
    "engine/images.py",
    ("_in_8_bits(_upright(f), channels)", "_in_8_bits(f, channels)",
     "wired::an_image_keeps_its_colours_and_which_way_is_up"),
    (".permute(2, 0, 1)", ".permute(2, 1, 0)",
     "wired::an_image_keeps_its_colours_and_which_way_is_up"),
    ("image.size, \"white\")", "image.size, \"black\")",
     "images::deep_and_transparent_images_keep_what_they_show"),
    ("(values / 257)", "(np.asarray(image) / 260)",
     "images::deep_and_transparent_images_keep_what_they_show"),
    ("enumerate(sorted({p.parent for p in files.paths}))",
     "enumerate(sorted({p.parent for p in files.paths}, reverse=True))",
     "images::a_folder_in_memory_equals_the_same_folder_streamed"),
    ("if path.exists() and _md5(path) == md5: return path", "if path.exists(): return path",
     "wired::a_file_with_other_bytes_is_fetched_anew"),
    ("and \"..\" not in name.parts", "", "images::unsafe_archives_are_refused_and_nothing_is"
     "_unpacked"),
    ("f\"bytes={done}-\"", "\"bytes=0-\"",
     "images::an_interrupted_download_goes_on_where_it_stopped"))

faults(
    "engine/runs.py",
    ("steps = step + max(1, int(left))", "steps = max(1, int(left))",
     "runs::what_the_minutes_settle"),
    ("cooldown=min(fall, steps - step)", "cooldown=min(c.cooldown, steps - step)",
     "runs::a_run_fits_itself_to_its_minutes_and_its_rate_ends_at_0"),
    ("if _same_budget(state, here): here = there", "if False: here = there",
     "runs::a_run_that_is_resumed_keeps_its_updates_on_any_machine"),
    ("images.loss(self.diffusion, self.ema.model, part)",
     "images.loss(self.diffusion, self.model, part)",
     "runs::the_held_out_loss_is_that_of_the_averaged_weights_on_the_same_draws_each_time"),
    ("return x.movedim(-1, -3) if last else x", "return x",
     "runs::data_are_taken_in_every_form_that_people_have"),
    ("return _read_set(images, _takes_labels(net))", "return _read_set(images, False)",
     "runs::data_are_taken_in_every_form_that_people_have"),
    ("return \"fp16\" if old else precision", "return precision",
     "runs::half_precision_is_what_the_gpu_has_units_for"))

faults(
    "engine/recipes.py",
    ("    if there != now:", "    if False:",
     "recipes::held_out_images_are_refused_where_an_older_run_may_have_trained_on_them"),
    ("at = next((w for w in widths() if w <= 16), widths()[-1])", "at = widths()[0]",
     "recipes::a_recipe_for_another_size_has_the_levels_and_the_attention_that_it_needs"))

faults(
    "diffusion.py",
    ("for item, g in zip(noise, own): item.normal_(generator=g)",
     "for item, g in zip(noise, own): item.normal_(generator=own[0])",
     "diffusion::noise_of_an_item_with_its_own_generator_does_not_see_the_batch"))

faults(
    "engine/many.py",
    ("(start + i * _STRIDE) % 2**32", "(start + i * _STRIDE) % 2**24",
     "many::no_two_images_of_a_job_share_a_seed_in_the_32_bits_that_are_used"),
    ("differ := differences(", "differ := [] and differences(",
     "many::other_settings_are_refused_and_nothing_is_changed"),
    ('for part in folder.glob(".*.part.*"): part.unlink()', "pass",
     "many::half_written_files_are_swept_away"),
    ("[mates.rank::mates.size]", "", "many::two_processes_share_a_job_that_may_be_killed_and_make"
     "_the_same_images"))

faults(
    "engine/cli.py",
    ("generators(seed, range(2 * n, 3 * n))", "generators(seed, range(n))",
     "cli::what_lies_between_two_images_is_what_interpolate_makes"),
    ("torch.cuda.set_device(int(rank) %", "torch.cuda.set_device(0 * int(rank) %",
     "cli::each_process_has_a_gpu_of_its_own"))

faults(
    "schedules.py",
    ("halfway = (rising[1:] + rising[:-1]) / 2", "halfway = rising[1:]",
     "schedules::steps_even_in_log_snr_are_the_nearest_whole_times"),
    ("(at - k).cummax(0).values + k", "at",
     "schedules::every_spacing_keeps_distinct_times_the_last_and_their_alpha_bars"))

faults(
    "sampling.py",
    ("whole / 2 * (b - a)", "whole * (b - a)", "sampling::unipc_agrees_with_diffusers"),
    ("[known[0], now, *known[1:order]]", "[known[0], *known[1:order]]",
     "sampling::the_solvers_converge_at_their_order"),
    ("-0.5 / np.cosh(u)", "-0.5 / np.cosh(u)**2",
     "sampling::adams_follows_the_equation_as_another_solver_does"),
    ("known, before = [now, *known[:order - 1]], x", "known, before = [now], x",
     "sampling::the_solvers_converge_at_their_order"),
    ('"even" if few else _SPACINGS.get(sampler, "even")', '"even"',
     "sampling::the_spacing_is_the_samplers_best_unless_named"))


faults(
    "evaluation.py",
    ("total = total + (high - low) * term", "total = total + term",
     "evaluation::the_cheap_estimate_is_the_bound_on_average_over_all_it_could_have_drawn"),
    ("torch.randint(low, high, (n,)", "torch.randint(low, max(high - 1, low + 1), (n,)",
     "evaluation::the_drawn_steps_are_uniform_and_reach_both_ends"),
    ("scatter.cpu() / max(n - 1, 1)", "scatter.cpu() / n",
     "evaluation::statistics_are_numpys_also_over_several_parts"),
    ("(self.count * other.count / n)", "0 * n",
     "evaluation::merged_statistics_are_those_of_all_images"),
    ("(A - B @ (U @ Vh))", "(A - B)",
     "evaluation::the_distance_of_diagonal_and_of_commuting_covariances"),
    ("(pairs.sum() + pairs.trace()) / 2", "pairs.sum() / 2",
     "evaluation::the_bias_of_few_samples_is_what_the_formula_says"),
    ("p.tensor_split(splits)", "p.flip(0).split(len(p))",
     "evaluation::the_score_is_taken_part_by_part_in_order"),
    ("least.indices + start", "least.indices",
     "evaluation::neighbours_are_those_of_brute_force_for_any_chunk"),
    ("squares = r.square().sum(1) - 2 * q @ r.T", "squares = (r.square().sum(1) - 2 * q @ r.T)"
     ".float()", "evaluation::a_copy_wins_over_a_lookalike_and_far_clusters_have_their_own"
     "_neighbours"),
    ("x0 = x0.to(torch.promote_types(x0.dtype, torch.float32))", "x0 = x0",
     "evaluation::half_precision_images_cost_what_the_same_numbers_in_float32_do"))

faults(
    "compression.py",
    ("x0 = x0.float() ", "x0 = x0 ",
     "compression::what_is_sent_in_another_dtype_arrives_as_exactly"),
    ("torch.zeros(shape, dtype=torch.float32, device", "torch.zeros(shape, device",
     "compression::what_is_sent_in_another_dtype_arrives_as_exactly"))

faults(
    "training.py",
    ("torch.zeros(T, dtype=torch.float32, device", "torch.zeros(T, device",
     "training::training_does_not_mind_a_default_of_double"))

faults(
    "data.py",
    ('("seed", "images", "batch_size") if', '("seed", "images") if',
     "data::the_state_is_a_place_and_what_it_belongs_to"))

faults(
    "schedules.py",
    ("isinstance(values, Tensor) else np.asarray(values)",
     "isinstance(values, Tensor) else np.asarray(values, float)",
     "schedules::times_that_are_not_whole_are_refused_in_whatever_they_come"))

faults(
    "engine/runs.py",
    ("own = self.saved and self", "own = self.step or self.saved and self",
     "runs::a_loop_of_ones_own_does_not_write_over_an_old_run_either"),
    ("self.saved.parent.parent == folder.resolve()", "True",
     "runs::a_loop_of_ones_own_does_not_write_over_an_old_run_either"),
    ("with self.owned(): return super().log()", "return super().log()",
     "runs::no_line_is_logged_while_another_process_has_the_folder"))

faults(
    "engine/images.py",
    ('with open(user_path(path), "rb") as f, Image.open(f)', "with Image.open(user_path(path))",
     "images::an_uncompressed_tiff_is_turned_as_a_compressed_one"),
    ('image.info.get("transparency", -1)', "-1",
     "images::what_is_transparent_in_16_bits_of_grey_is_white"))

faults(
    "engine/pretrained.py",
    ('{"vae", "vqvae", "movq"}', '{"vae"}', "pretrained::a_network_of_latents_is_refused"))

faults(
    "plotting.py",
    ("[i % every::every] for", "[:i == 0] for",
     "plotting::one_frame_of_another_colour_keeps_it"))

faults(
    "engine/cli.py",
    ("        _check_drawn(args)\n", "",
     "cli::of_a_folder_of_drawn_images_no_more_is_asked_than_it_holds"),
    ("labels * len(a), path", '[f"t = {k}" for k in depths] * len(a), path',
     "cli::a_row_is_named_by_the_steps_of_noise_that_it_has"))

faults(
    "engine/metrics.py",
    ("torch.save(_read_pickle(path), own)", "own = path",
     "metrics::a_pickle_that_would_run_something_is_refused"),
    ("-{content}-", "-",
     "metrics::reference_statistics_are_kept_by_extractor_and_by_content"),
    ("p.stat().st_size, p.stat().st_mtime_ns)", ")",
     "metrics::statistics_of_files_are_those_of_these_very_files"),
    ("if content is None: return measured()\n", "\n",
     "metrics::statistics_of_files_are_those_of_these_very_files"))

faults(
    "sampling.py",
    ("randn(x0.shape, x0, generator))\n                for x0 in (x0_a, x0_b))",
     "z) for x0, z in zip((x0_a, x0_b), [randn(x0_a.shape, x0_a, generator)] * 2))",
     "figures::the_mixed_latent_has_its_law_between_its_ends_too"))

faults(
    "compression.py",
    ("terms[\"vb\"][:, 1:], terms[\"prior\"]", "terms[\"vb\"][:, :-1], terms[\"prior\"]",
     "figures::rate_and_distortion_from_a_few_terms_are_those_of_all_terms"))

faults(
    "objective.py",
    ("x0.dtype, x0.to(torch.promote_types(x0.dtype, torch.float32))", "x0.dtype, x0",
     "objective::the_loss_of_data_in_half_precision_is_computed_in_float32"))

faults(
    "unet.py",
    ("[1, 1, 1, 1] if pad_all_sides", "[0, 1, 0, 1] if pad_all_sides",
     "unet::other_shapes_equal_diffusers_too"),
    ("heads, c.groups, c.norm_eps)", "heads, c.groups)", "unet::other_shapes_equal_diffusers_too"))

faults(
    "engine/pretrained.py",
    ("(\"flip_sin_to_cos\", True)", "(\"flip_sin_to_cos\", False)",
     "pretrained::keys_that_are_left_out_are_what_diffusers_takes_them_for"),
    ("variant in (\"\", \".fp16\"", "variant in (\".fp16\", \"\"",
     "pretrained::of_several_files_of_weights_the_fullest_is_read"),
    ("beta_start=0.00085, beta_end=0.012, ", "",
     "pretrained::a_solvers_config_gives_the_schedule_and_the_prediction"))

faults(
    "engine/images.py",
    ("(width, height), Image.Resampling", "(height, width), Image.Resampling",
     "images::grey_folders_load_at_any_size_and_shape"))

faults(
    "bound.py",
    ("for _ in range(n)][::-1])", "for _ in range(n)])",
     "objective::an_item_with_a_generator_of_its_own_has_the_same_bound_in_any_chunk_and_company"))

faults(
    "evaluation.py",
    ("draws = own[start:start + batch] or generator", "draws = own[:len(x)] or generator",
     "evaluation::an_image_with_a_generator_of_its_own_costs_the_same_in_any_batch"),
    ("    if off > 1e-5 * covariance", "    if off > 1e9 * covariance",
     "evaluation::a_measure_refuses_in_words"))

faults(
    "engine/cli.py",
    ("args.terms, batch, own,", "args.terms, batch, own[0],",
     "cli::evaluate_gives_an_image_the_same_number_in_any_batch_and_company"))

faults(
    "sampling.py",
    ("        if len(known) == 1:", "        if len(known) == 0:",
     "sampling::adams_of_order_1_is_ddim"),
    ("alphas[i], sigmas[i]) * (corrected - x)", "alphas[i], sigmas[i]) * (x - corrected)",
     "sampling::on_data_of_its_width_adams_goes_as_if_the_network_were_asked_twice_a_step"),
    ("            x0 = x0 + moved.clamp(-width, width)", "            x0 = x0",
     "sampling::on_data_of_its_width_adams_goes_as_if_the_network_were_asked_twice_a_step"),
    ("moved.clamp(-width, width)", "moved",
     "sampling::a_guess_goes_along_by_no_more_than_the_width"),
    ("            if clip: x0 = x0.clamp(-1, 1)", "            pass",
     "sampling::a_guess_that_goes_along_stays_in_the_range_if_guesses_are_clipped"),
    ("    if d.T < 6: width = None", "    if d.T < 2: width = None",
     "sampling::adams_in_very_few_steps_is_as_near_as_ddim"))

faults(
    "schedules.py",
    ("lambdas[:-1]) / 2)**0.2", "lambdas[:-1]) / 2)**0.3",
     "schedules::between_shares_the_error_of_adams_among_the_steps"),
    ("_even_in(error, steps, error[-1].item() / steps)", "_even_in(error, steps)",
     "schedules::between_shares_the_error_of_adams_among_the_steps"))

faults(
    "evaluation.py",
    ("and images.max() <= 1:", "and images.max() < 1:",
     "evaluation::floats_cast_to_uint8_are_met_with_a_warning_and_dark_pictures_are_not"),
    ("and images.max() <= 1:", "and images.max() <= 2:",
     "evaluation::floats_cast_to_uint8_are_met_with_a_warning_and_dark_pictures_are_not"))

faults(
    "training.py",
    ("    if is_data or not hasattr(batches, \"__iter__\"):", "    if is_data:",
     "training::data_in_the_place_of_batches_are_refused_in_words"))

faults(
    "engine/cli.py",
    ("    if args.download and eyes.name == INCEPTION:", "    if args.download:",
     "cli::fid_fetches_the_images_that_it_compares_with"),
    ("if args.data not in (None, \"cifar10\"):", "if args.data == \"digits\":",
     "cli::fid_refuses_what_it_would_not_listen_to"))

faults(
    "objective.py",
    ("share = lambda: (fraction * way).expm1() / way.expm1()", "share = lambda: fraction",
     "sampling::a_learned_variance_is_that_of_the_stretch"),
    ("if loss is None: loss =", "if not loss: loss =",
     "objective::a_name_that_is_no_name_is_refused_with_those_there_are"))

faults(
    "sampling.py",
    ("order: int = 3,", "order: int = 2,",
     "sampling::each_order_is_nearer_than_the_one_below_and_the_usual_is_the_one_measured"),
    ("not (noise.is_meta or noise.isfinite().all())", "False",
     "sampling::a_wrong_argument_is_refused_before_anything_runs"))

faults(
    "training.py",
    ("torch.optim.Adam(weights, config.lr, fused", "torch.optim.Adam(weights, eps=1e-4, fused",
     "wired::updates_from_a_known_state_are_those_of_a_plain_loop"))

faults(
    "engine/files.py",
    ("return Path(os.path.expanduser(path))", "return Path(path)",
     "files::what_is_written_to_a_path_with_a_tilde_is_in_the_home_folder"))

faults(
    "engine/runs.py",
    ("seconds - self.start[1] >= self.tenth", "seconds >= self.tenth",
     "runs::a_tenth_of_the_time_begins_when_all_is_compiled"),
    ("self.step % c.log_every == 0", "True", "runs::a_line_is_logged_every_so_many_updates"),
    ("self.step % c.save_every == 0", "True",
     "runs::the_last_n_and_every_kth_checkpoint_are_kept"),
    ("checkpoints(self.run)[:-c.keep_last]", "checkpoints(self.run)[:-1]",
     "runs::the_last_n_and_every_kth_checkpoint_are_kept"),
    ("if not c.keep_every or int(old.name[5:]) % c.keep_every: _drop(old)", "_drop(old)",
     "runs::the_last_n_and_every_kth_checkpoint_are_kept"),
    ("(self.step % c.sample_every == 0 or done)", "True",
     "runs::samples_are_drawn_on_time_and_leave_the_run_as_it_was"),
    ("next(net.parameters()).is_cuda and c.accumulate == processes == 1",
     "next(net.parameters()).is_cuda and processes == 1",
     "runs::on_cuda_an_update_of_one_pass_is_recorded"),
    ("sampler=c.sampler,", "sampler=\"adams\",",
     "wired::grids_and_samples_are_of_the_averaged_weights_and_the_sampler"),
    ("enabled=half is not None)", "enabled=False)",
     "runs::what_a_run_draws_and_measures_is_in_its_own_precision"),
    ("    if b.labels is not None: data[", "    if False: data[",
     "runs::a_run_that_is_resumed_on_other_labels_is_refused"),
    ("    return {name: load(data) for name, data in files.items()}, state",
     "    try: return {name: load(data) for name, data in files.items()}, state\n"
     "    except ValueError as e: raise ValueError(f\"{e}; delete it\")",
     "runs::an_error_of_a_library_is_no_damage_that_deleting_would_mend"))

faults(
    "engine/recipes.py",
    ("minutes=240.0, lr=4e-4,", "minutes=240.0, lr=2e-4,",
     "recipes::gpu_hours_is_the_papers_network_in_half_precision_within_four_hours"))

faults(
    "engine/cli.py",
    ("_STEPS = {\"ddim\": 50}", "_STEPS = {\"ddim\": 5}",
     "cli::without_a_word_on_steps_a_sampler_takes_as_many_as_the_help_says"),
    ("steps = args.steps or min(usual, T)", "steps = args.steps or T",
     "cli::without_a_word_on_steps_a_sampler_takes_as_many_as_the_help_says"),
    ("trainer.ema.model, image, c.seed, options)", "trainer.ema.model, image, 0, options)",
     "cli::the_pictures_of_a_run_are_drawn_with_its_seed"))

faults(
    "engine/faster.py",
    ("F.pad(w, (0, 1)) + F.pad(w, (1, 0))", "F.pad(w, (0, 1)) * 2",
     "faster::the_transposed_convolution_equals_doubling_and_convolution_with_its_gradients"),
    ("variance = away.square().mean((2, 3)) @ total / size",
     "variance = away.square().mean((2, 3)) @ total / (size - 1)",
     "faster::the_written_out_normalisation_equals_pytorchs_with_its_gradients"),
    ("round(2**32 * p) - 2**31", "round(2**32 * p * p) - 2**31",
     "faster::the_hash_dropout_drops_the_right_share_anew_each_time_and_obeys_the_seed"))

faults(
    "plotting.py",
    ("np.clip((x + 1) * 127.5, 0, 255)", "((x + 1) * 127.5 % 256)",
     "plotting::values_outside_the_range_are_clipped_and_what_is_no_number_is_grey"),
    ("divmod(i, ncols), (h, w)", "divmod(i, nrows)[::-1], (h, w)",
     "plotting::each_image_lies_in_the_grid_pixel_for_pixel_in_reading_order"))

faults(
    "schedules.py",
    ("isinstance(flag, (bool, np.bool_)):", "isinstance(flag, (bool, np.bool_, str)):",
     "flags::a_flag_is_true_or_false_and_no_word"))

faults(
    "sampling.py",
    ("        _check_flags(clip=clip)\n        options =", "        options =",
     "flags::a_flag_is_true_or_false_and_no_word"))

faults(
    "bound.py",
    ("not isinstance(x, Tensor) or not x.is_floating_point()", "not isinstance(x, Tensor)",
     "bound::what_is_no_tensor_of_numbers_or_does_not_fit_is_refused_by_name"),
    ("    except RuntimeError:\n        shapes =", "    except KeyError:\n        shapes =",
     "bound::what_is_no_tensor_of_numbers_or_does_not_fit_is_refused_by_name"))

faults(
    "objective.py",
    ("return extract(d.posterior_variance, t, x), extract(d.posterior_log_variance, t, x)",
     "return tuple(extract(v, d.network_t[t], x) for v in (d.original.posterior_variance,\n"
     "            d.original.posterior_log_variance))",
     "sampling::ancestral_steps_of_any_length_are_those_of_bayes_rule"))

faults(
    "compression.py",
    ("    _check_levels(x0)\n", "",
     "compression::what_cannot_be_sent_or_received_is_refused_in_words"))

faults(
    "training.py",
    ("if -1.5 < low < 0 and high < 1.5:", "if -1.5 < low <= 0 and high < 1.5:",
     "training::a_first_batch_of_images_in_another_range_is_a_warning_and_the_trainers_is_its_own"),
    ("    if gradient is None:\n", "    if gradient is None or True:\n",
     "training::a_first_batch_of_images_in_another_range_is_a_warning_and_the_trainers_is_its_own"))

faults(
    "engine/runs.py",
    ("timeout=timedelta(days=30)", "timeout=timedelta(minutes=10)",
     "runs::two_processes_compute_what_one_does_on_the_same_global_batch"),
    ("PRECISIONS.get(self.precision)", "PRECISIONS.get(self.accelerator.mixed_precision)",
     "runs::trainers_that_live_side_by_side_each_keep_their_precision"),
    ("self.state.ema.model.load_state_dict(net.state_dict())", "pass",
     "runs::two_processes_compute_what_one_does_on_the_same_global_batch"),
    ("    if labels is None: return net\n", "    return net\n",
     "runs::a_network_with_labels_draws_its_grids_for_some_of_the_datas_own"),
    ("except Exception as e:          # whatever it is", "except OSError as e:          # it is",
     "runs::samples_that_fail_cost_no_checkpoint"),
    ("(got := aside[0].shape[1:]) != (want := images.shape[1:])",
     "(got := aside[0].shape[1:]) != (want := got)",
     "runs::held_out_images_that_are_unlike_the_data_are_refused_at_the_start"),
    ("if len(images) == 0: raise ValueError(\"held_out", "if False: raise ValueError(\"held_out",
     "runs::held_out_images_that_are_unlike_the_data_are_refused_at_the_start"),
    ("if at.is_dir() or at == user_path(path): raise", "raise",
     "runs::a_run_that_is_trained_meanwhile_is_read_at_its_newest_checkpoint"),
    ("return x.float() if x.is_floating_point() else x", "return x",
     "runs::floats_stay_what_they_are_and_of_double_precision_become_single"))

faults(
    "training.py",
    ("p.is_floating_point() and p.itemsize < 4", "p.is_floating_point() and p.itemsize < 2",
     "runs::half_precision_weights_are_refused_for_their_average_would_not_move"))

faults(
    "evaluation.py",
    ("            if d.decoder == \"discretized\": _check_levels(x0) ",
     "            if d.decoder == \"discretized\": _check_levels(x0.float()) ",
     "evaluation::all_256_levels_in_half_precision_are_among_the_decoders"))

faults(
    "sampling.py",
    ("@torch.inference_mode()     # on while", "# on while",
     "sampling::a_sampler_that_is_no_generator_function_records_no_gradients_either"),
    ("elif alphas[i - 1]:   # else there", "else:   # there",
     "sampling::signal_that_is_gone_before_the_end_of_a_schedule_is_no_fault_of_the_model"),
    ("if d.T < 6: width = None", "if start < 5: width = None",
     "sampling::a_walk_that_begins_near_its_end_is_corrected_if_its_steps_are_short"),
    ("torch.empty(0, dtype=whole, device=device)", "torch.empty(0, device=device)",
     "sampling::the_first_noise_is_whole_where_the_default_is_half"))

faults(
    "evaluation.py",
    ("@torch.no_grad()\ndef extract(", "def extract(",
     "evaluation::features_and_what_is_made_of_them_hold_no_graph"),
    ("    @classmethod\n    @torch.no_grad()\n    def of(", "    @classmethod\n    def of(",
     "evaluation::features_and_what_is_made_of_them_hold_no_graph"),
    ("self.extractor or other.extractor", "self.extractor",
     "evaluation::plain_numbers_have_neighbours_and_a_name_is_kept_when_statistics_join"))

faults(
    "training.py",
    ("        net.train()                                      # whatever", "        # whatever",
     "training::a_network_that_its_caller_has_put_to_rest_learns_on_awake"),
    ("if step is None: raise", "if False: raise",
     "training::an_average_that_warms_up_asks_for_the_step_and_is_one"))

faults(
    "engine/recipes.py",
    ("return replaced(look_up(", "return (look_up(",
     "recipes::a_recipe_shares_its_options_with_no_other_and_with_nobody"))

faults(
    "engine/images.py",
    ("_in_8_bits(_upright(f), channels)", "_in_8_bits(ImageOps.exif_transpose(f), channels)",
     "images::an_image_is_turned_as_its_exif_says_whatever_else_that_says"),
    ("any(made <= names for made in _MADE)", "False",
     "cli::a_run_among_its_own_images_does_not_train_on_its_pictures"),
    ("return user_path(os.environ.get(\"DDPM_NB_CACHE\")",
     "return Path(os.environ.get(\"DDPM_NB_CACHE\")",
     "images::the_home_folder_is_meant_in_the_place_of_the_cache_too"))

faults(
    "engine/many.py",
    ("if there is None or not any(", "if there is None and not any(",
     "cli::a_sample_that_was_refused_leaves_a_folder_that_the_next_may_fill"))

faults(
    "engine/metrics.py",
    ("with _or_told(path), replacing(path)", "with replacing(path)",
     "metrics::statistics_that_cannot_be_kept_are_used_all_the_same"))

faults(
    "engine/pretrained.py",
    ("if folder.is_dir() and (_holds_model(folder) or not ours)", "if folder.is_dir()",
     "cli::a_folder_of_a_packaged_models_name_does_not_hide_it"))

faults(
    "engine/cli.py",
    ("_result(text if args.json else line)\n        if part: part.write_text(text + \"\\n\")",
     "if part: part.write_text(text + \"\\n\")\n        _result(text if args.json else line)",
     "cli::what_was_measured_is_told_though_its_file_cannot_be_written"),
    ("    _checked_options(sampler, {\"eta\": args.eta} if args.eta else {})\n", "",
     "cli::fid_refuses_what_it_would_not_listen_to"),
    ("    if not averaged: raise ValueError(f\"{name} has one set",
     "    if False: raise ValueError(f\"{name} has one set",
     "cli::a_saved_model_has_no_last_weights"),
    ("images = args.batch if args.grid_of == \"interpolation\" else min(args.batch, args.n)",
     "images = args.n", "cli::a_compiled_network_sees_one_batch_size_and_draws_the_same_images"))

faults(
    "data.py",
    (".contiguous().view(torch.uint8)", ".contiguous().to(torch.uint8)",
     "data::fingerprints_tell_data_sets_apart"))

faults(
    "engine/recipes.py",
    ("        warnings.warn(f\"no loss on held-out", "        dict(said=f\"no loss on held-out",
     "recipes::a_held_out_image_that_cannot_be_read_is_told_when_a_run_begins"))

faults(
    "engine/cli.py",
    ("going on without it\")\n        return None", "going on without it\")\n        raise",
     "cli::what_needs_no_recipe_goes_on_without_a_damaged_one"))

faults(
    "engine/many.py",
    ("if o.get(\"steps\") is None else", "if \"steps\" not in o else",
     "many::the_process_is_that_of_the_times_that_are_visited"))

faults(
    "engine/runs.py",
    ("labels.shape[:1] != (len(images),)", "len(labels) != len(images)",
     "runs::other_data_are_refused_in_one_line_that_says_what_to_do"),
    ("x, label = images.item(i)\n", "x, label = images.item(i)[0], images.item(i)[1]\n",
     "runs::each_image_of_a_set_is_read_once"))

faults(
    "plotting.py",
    ("    elif kwargs: raise", "    elif False: raise",
     "plotting::an_animation_refuses_words_it_does_not_know"))

faults(
    "unet.py",
    ("return isinstance(value, kind) and not isinstance(value, bool)",
     "return isinstance(value, kind)", "unet::wrong_configs_are_refused_in_words"))

faults(
    "data.py",
    ("rank = whole_number(\"rank\", rank, 0, world - 1)", "rank = int(rank)",
     "data::wrong_arguments_are_refused_in_words"))

faults(
    "compression.py",
    ("return [whole_number(f\"counts[{i}]\", c) for i, c in enumerate(counts)], seed",
     "return counts, seed", "compression::wrong_counts_are_refused_by_both"),
    ("    seed = whole_number(\"seed\", seed,", "    whole_number(\"seed\", seed,",
     "compression::numpys_whole_numbers_are_whole_numbers"),
    ("weight = _to_double(log_q - log_p)", "weight = (log_q - log_p).double()",
     "compression::nothing_is_made_float64_where_the_device_may_have_none"))

faults(
    "evaluation.py",
    ("pairs = _to_double(references[found]) - _to_double(queries)[:, None]",
     "pairs = references[found].double() - queries.double()[:, None]",
     "compression::nothing_is_made_float64_where_the_device_may_have_none"))

faults(
    "evaluation.py",
    ("d.bits_per_dim(model, x0, None, draws, clip)", "d.bits_per_dim(model, x0, None, draws)",
     "evaluation::a_likelihood_clips_the_guess_or_leaves_it"),
    ("_estimate(d, watched, x0, parts, draws, clip)", "_estimate(d, watched, x0, parts, draws, 1)",
     "evaluation::a_likelihood_clips_the_guess_or_leaves_it"),
    ("lower + lower.tril(-1).T, 50", "lower + lower.T, 50",
     "evaluation::the_packaged_statistics_are_unpacked_as_they_were_packed"),
    ("50_000 if train else 10_000, name", "10_000 if train else 50_000, name",
     "evaluation::the_packaged_statistics_are_unpacked_as_they_were_packed"))

faults(
    "objective.py",
    ("- x.shape[1] / 2 * (2 * math.pi", "- 0.5 * (2 * math.pi",
     "objective::ideal_density_is_that_of_the_noised_mixture_in_any_dimension"))

faults(
    "data.py",
    ("((x.float() + 1) * 127.5)", "((x + 1) * 127.5)",
     "data::every_pixel_value_survives_the_round_trip"))

faults(
    "bound.py",
    ("chunk = chunk or max(1, 128 // B)", "chunk = chunk or 1",
     "bound::memory_does_not_grow_with_T"))

faults(
    "training.py",
    ("if not lies(decay, 0, 1) or decay == 1:", "if False:",
     "training::a_decay_outside_0_to_1_is_refused"),
    ("memory: int = 1000)", "memory: int = 100)",
     "training::loss_by_t_remembers_a_thousand_updates"))

faults(
    "compression.py",
    ("p_T), *middle, -mean_log(p[0])]", "p_T), *middle[::-1], -mean_log(p[0])]",
     "compression::each_term_of_each_form_follows_from_the_paths"),
    ("range(T, 0, -1)] + [-mean_log(q(0))]", "range(T, 0, -1)] + [mean_log(q(0))]",
     "compression::each_term_of_each_form_follows_from_the_paths"))

faults(
    "plotting.py",
    ("round(1000 * every / fps)", "round(1000 / fps)",
     "plotting::a_film_keeps_its_pace_when_frames_are_left_out_and_holds_the_last"),
    ("last = max(hold, every / fps)", "last = every / fps",
     "plotting::a_film_keeps_its_pace_when_frames_are_left_out_and_holds_the_last"))

faults(
    "engine/images.py",
    ("urlopen(request, timeout=timeout)", "urlopen(request)",
     "images::a_host_that_is_silent_is_given_up"))

faults(
    "engine/metrics.py",
    ("cifar10(root, train)[0]", "cifar10(None, train)[0]",
     "metrics::samples_are_compared_with_cifar10_kept_from_the_first_time"))

faults(
    "engine/runs.py",
    ("if not torch.stack([w.isfinite().all() for w in weights]).all():", "if False:",
     "runs::weights_that_are_not_finite_are_not_saved_though_every_loss_was"),
    ("elif number == signal.SIGINT and time", "elif time",
     "runs::a_second_ctrl_c_interrupts_but_not_an_echo_of_the_first_nor_a_sigterm"),
    ("self.when > 1: raise KeyboardInterrupt", "self.when > 9: raise KeyboardInterrupt",
     "runs::a_second_ctrl_c_interrupts_but_not_an_echo_of_the_first_nor_a_sigterm"),
    ("if threading.current_thread() is threading.main_thread():", "if True:",
     "runs::a_run_in_a_thread_trains_too"),
    ("**usual, \"generator\": torch.Generator().manual_seed(seed), **options}",
     "\"generator\": torch.Generator().manual_seed(seed), **options, **usual}",
     "wired::grids_and_samples_are_of_the_averaged_weights_and_the_sampler"))

faults(
    "evaluation.py",
    ("part = \"train\" if train else \"test\"", "part = \"test\" if train else \"train\"",
     "evaluation::the_packaged_statistics_are_unpacked_as_they_were_packed"),
    ("cifar10_statistics(train: bool = True, ", "cifar10_statistics(train: bool = False, ",
     "evaluation::the_packaged_statistics_are_unpacked_as_they_were_packed"),
    ("batch), disable=not progress, desc=\"bits/dim\")", "batch), disable=True, desc=\"bits/dim\")",
     "evaluation::a_bar_counts_the_batches"),
    ("tqdm(parts, disable=not progress,", "tqdm(parts, disable=True,",
     "evaluation::a_bar_counts_the_batches"))

faults(
    "compression.py",
    ("parts = [mean_log(q(0, T) / q(0) / p_T), *middle, -mean_log(p[0])]",
     "parts = [-mean_log(p[0]), *middle, mean_log(q(0, T) / q(0) / p_T)]",
     "compression::each_term_of_each_form_follows_from_the_paths"),
    ("parts = [mean_log(q(0, T) / q(0) / p_T), *middle, -mean_log(p[0])]", "parts = [total]",
     "compression::each_term_of_each_form_follows_from_the_paths"))

faults(
    "bound.py",
    ("disable=not progress, desc=\"bits/dim\"", "disable=True, desc=\"bits/dim\"",
     "objective::a_bar_counts_the_calls_of_the_bound"))

faults(
    "sampling.py",
    ("if start is None else start + 1\n        for", "if start is None else self.T\n        for",
     "sampling::progress_bar_counts_the_steps"),
    ("return noise.to(device, torch.promote_types(", "return noise.to(torch.promote_types(",
     "sampling::a_generator_or_noise_on_the_cpu_serves_another_device"))

faults(
    "plotting.py",
    ("fps: float = 12, ", "fps: float = 120, ",
     "plotting::a_film_has_twelve_frames_a_second_and_holds_the_last_for_one_and_a_half"),
    ("(low, high), aspect=\"equal\")", "(low, high))",
     "plotting::clouds_lie_side_by_side_or_in_one_place_and_both_axes_have_one_scale"),
    ("return (-limits, limits) if", "return (0, limits) if",
     "plotting::clouds_lie_side_by_side_or_in_one_place_and_both_axes_have_one_scale"),
    ("alt, ncols=n, show=False", "alt, ncols=1, show=False",
     "plotting::clouds_lie_side_by_side_or_in_one_place_and_both_axes_have_one_scale"),
    ("if i < n else 255", "if i < n else 0",
     "plotting::each_image_lies_in_the_grid_pixel_for_pixel_in_reading_order"),
    ("- pad, c), 222, np.uint8)", "- pad, c), 0, np.uint8)",
     "plotting::each_image_lies_in_the_grid_pixel_for_pixel_in_reading_order"))

faults(
    "engine/images.py",
    ("disable=not progress) as bar", "disable=True) as bar",
     "images::a_bar_counts_the_bytes_and_begins_with_those_that_are_there"),
    ("tqdm(total=total, initial=done, ", "tqdm(total=total, initial=0, ",
     "images::a_bar_counts_the_bytes_and_begins_with_those_that_are_there"))

faults(
    "engine/metrics.py",
    ("tqdm(parts, disable=not progress,", "tqdm(parts, disable=True,",
     "metrics::a_bar_counts_the_batches_of_samples"))

faults(
    "engine/many.py",
    ("disable=not progress or mates.rank > 0", "disable=True",
     "many::a_bar_counts_the_images_that_are_drawn_or_the_steps_of_a_single_batch"),
    ("disable=not progress or one)", "disable=True)",
     "many::a_bar_counts_the_images_that_are_drawn_or_the_steps_of_a_single_batch"),
    ("samples.draw(indices, progress and one)", "samples.draw(indices)",
     "many::a_bar_counts_the_images_that_are_drawn_or_the_steps_of_a_single_batch"),
    ("if \"gloo\" not in str(e): raise\n", "raise\n",
     "many::a_process_that_is_gone_is_told_and_other_errors_are_left_alone"),
    ("if \"gloo\" not in str(e): raise\n", "\n",
     "many::a_process_that_is_gone_is_told_and_other_errors_are_left_alone"))

faults(
    "engine/runs.py",
    ("_CURVES = (\"loss\", \"held_out\", ", "_CURVES = (\"loss\", ",
     "runs::tensorboard_is_written_when_asked"),
    ("self.when > 1: raise KeyboardInterrupt", "self.when > 1: pass",
     "runs::a_second_ctrl_c_interrupts_but_not_an_echo_of_the_first_nor_a_sigterm"),
    ("if not self.folder: raise ValueError(\"this trainer has no folder",
     "if False: raise ValueError(\"this trainer has no folder",
     "runs::a_checkpoint_needs_a_folder"),
    ("if not self.recent: raise ValueError(\"there is no update",
     "if False: raise ValueError(\"there is no update", "runs::a_line_of_the_log_needs_an_update"),
    ("if c.precision == \"bf16\" and self.precision == \"fp16\":", "if False:",
     "runs::a_gpu_without_units_for_bf16_is_told_what_stands_in"))

faults(
    "engine/cli.py",
    ("if not folder and Path(args.out).is_dir():", "if False:",
     "cli::a_folder_is_no_place_for_a_picture"))

faults(
    "engine/pretrained.py",
    ("not in (None, 4 * base):", "not in (None, 4 * base, width):",
     "pretrained::a_damaged_folder_is_refused_in_words_before_anything_is_built"))


def ids(tests):
    "What pytest calls them."
    parts = [name.partition("::") for name in tests.split()]
    return [f"tests/test_{file}.py" + (f"::test_{name}" if name else "") for file, _, name in parts]


def copied(folder):
    "The project in `folder`: the package as a copy, all else as links."
    shutil.copytree(ROOT / "ddpm_nb", folder / "ddpm_nb", ignore=shutil.ignore_patterns("__pyc*"))
    for path in ROOT.iterdir():
        if path.name[0] not in "._" and path.name != "ddpm_nb":
            (folder / path.name).symlink_to(path)


def run(folder, tests):
    "pytest's exit status in this process, 1 for a failure; its last line."
    os.chdir(folder)
    os.environ["PYTHONPATH"], os.environ["PYTHONDONTWRITEBYTECODE"] = str(folder), "1"
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("this never ends"))
    signal.alarm(300 * len(tests))
    with contextlib.redirect_stdout(io.StringIO()) as out:
        status = pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests])
    signal.alarm(0)
    return int(status), (out.getvalue().strip().splitlines() or [""])[-1]


def tried(number):
    "Put in one fault, none for -1: what came of it, in a word."
    file, text, fault, tests = MUTANTS[number]
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        copied(Path(name))
        path = Path(name, "ddpm_nb", file)
        source = path.read_text()
        if source.count(text) != 1: word, line = "NOT FOUND", f"{source.count(text)} times there"
        else:
            path.write_text(source.replace(text, fault))
            status, line = run(Path(name), ids(tests))
            words = {0: "SURVIVED", 1: "caught"} if number >= 0 else {0: "sound"}
            word = words.get(status, "BROKEN")
        os.chdir(ROOT)
    print(f"{number:3} {word:9} {time.monotonic() - start:4.0f} s  {file}: {fault.strip()[:50]!r}"
          + (f"  ({line[:60]})" if word not in ("caught", "sound") else ""), flush=True)
    return word


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", type=int, nargs="+", metavar="N", help="numbers in the list")
    parser.add_argument("--jobs", type=int, default=1, help="how many at a time")
    options = parser.parse_args()
    chosen = options.only or list(range(len(MUTANTS)))
    # a test that fails anyway proves nothing: all of them once, with a fault that is none
    tests = " ".join(sorted({test for n in chosen for test in MUTANTS[n][3].split()}))
    MUTANTS.append(("schedules.py", "import math", "import math", tests))
    for name in SLOW: importlib.import_module(name)
    torch.set_num_threads(1)
    # the same examples every time, and none made smaller: that it failed is enough
    found = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
    hypothesis.settings.register_profile("mutants", phases=found, derandomize=True, deadline=None)
    hypothesis.settings.load_profile("mutants")
    # a child for each, which finds these modules there, and none of the package's
    with multiprocessing.get_context("fork").Pool(options.jobs, maxtasksperchild=1) as pool:
        sound, *words = pool.map(tried, [-1, *chosen], 1)
    print(f"{words.count('caught')} of {len(words)} caught")
    if sound != "sound": sys.exit("but some of the tests fail without any fault, see -1")
    sys.exit(any(word != "caught" for word in words))


if __name__ == "__main__": main()

"""Denoising Diffusion Probabilistic Models, the executable edition."""

__version__ = "0.1.0"

from ddpm_nb.bound import discretized_gaussian_log_likelihood, gaussian_kl, gaussian_log_likelihood, variational_bound
from ddpm_nb.compression import rate_distortion
from ddpm_nb.data import cifar10, digits, image_folder, swiss_roll, to_model, to_uint8
from ddpm_nb.diffusion import ForwardProcess
from ddpm_nb.objective import LOSSES, PREDICTIONS, VARIANCES, IdealDenoiser, ReverseProcess
from ddpm_nb.pretrained import load_pretrained, save_pretrained
from ddpm_nb.sampling import SAMPLERS, GaussianDiffusion
from ddpm_nb.schedules import NoiseSchedule
from ddpm_nb.training import EMA, TrainConfig, Trainer
from ddpm_nb.unet import UNet, UNetConfig

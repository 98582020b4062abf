"""Denoising Diffusion Probabilistic Models, the executable edition."""

__version__ = "0.1.0"

from ddpm_nb.bound import discretized_gaussian_log_likelihood, gaussian_kl, gaussian_log_likelihood, variational_bound
from ddpm_nb.diffusion import ForwardProcess
from ddpm_nb.objective import LOSSES, PREDICTIONS, VARIANCES, ReverseProcess
from ddpm_nb.sampling import SAMPLERS, GaussianDiffusion
from ddpm_nb.schedules import NoiseSchedule

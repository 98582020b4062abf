"""Denoising Diffusion Probabilistic Models, the executable edition."""

__version__ = "0.1.0"

from importlib import import_module as _import_module
from typing import TYPE_CHECKING as _TYPE_CHECKING

# The public surface, in the order of the book. What else is public stands in its module's `__all__`.
__all__ = [
    "NoiseSchedule", "SCHEDULES",
    "ForwardProcess",
    "discretized_gaussian_log_likelihood", "gaussian_kl", "gaussian_log_likelihood",
    "variational_bound",
    "IdealDenoiser", "PREDICTIONS", "ReverseProcess", "VARIANCES",
    "GaussianDiffusion", "SAMPLERS",
    "UNet", "UNetConfig",
    "Mixture", "digits", "swiss_roll", "to_model", "to_uint8",
    "EMA", "TrainConfig", "train",
    "rate_distortion",
    "Trainer", "cifar10", "image_folder", "load_pretrained", "save_pretrained",
]

# Where they stand: a module is imported when one of its names is first asked for (PEP 562).
_HOME = {name: module for module, names in {
    "schedules": "NoiseSchedule SCHEDULES",
    "diffusion": "ForwardProcess",
    "bound": "discretized_gaussian_log_likelihood gaussian_kl gaussian_log_likelihood "
             "variational_bound",
    "objective": "IdealDenoiser PREDICTIONS ReverseProcess VARIANCES",
    "sampling": "GaussianDiffusion SAMPLERS",
    "unet": "UNet UNetConfig",
    "data": "Mixture digits swiss_roll to_model to_uint8",
    "training": "EMA TrainConfig train",
    "compression": "rate_distortion",
    "engine.images": "cifar10 image_folder",
    "engine.pretrained": "load_pretrained save_pretrained",
    "engine.runs": "Trainer",
}.items() for name in names.split()}

if _TYPE_CHECKING:
    from .bound import *
    from .compression import *
    from .data import *
    from .diffusion import *
    from .engine.images import *
    from .engine.pretrained import *
    from .engine.runs import *
    from .objective import *
    from .sampling import *
    from .schedules import *
    from .training import *
    from .unet import *


def __getattr__(name: str):
    if name not in _HOME: raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(_import_module(f".{_HOME[name]}", __name__), name)
    return value


def __dir__() -> list[str]: return sorted({*globals(), *__all__})

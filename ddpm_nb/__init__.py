"""Denoising Diffusion Probabilistic Models, the executable edition."""

__version__ = "0.1.0"

from importlib import import_module as _import_module
from typing import TYPE_CHECKING

# The public names, in the order of the book. What else is public stands in its module's `__all__`.
__all__ = [
    "NoiseSchedule", "SCHEDULES",
    "ForwardProcess",
    "discretized_gaussian_log_likelihood", "gaussian_kl", "gaussian_log_likelihood",
    "variational_bound",
    "IdealDenoiser", "LOSSES", "PREDICTIONS", "ReverseProcess", "VARIANCES",
    "GaussianDiffusion", "SAMPLERS",
    "UNet", "UNetConfig",
    "Mixture", "digits", "swiss_roll", "to_model", "to_uint8",
    "EMA", "TrainConfig", "train",
    "Statistics", "frechet_distance", "inception_score",
    "rate_distortion",
    "Trainer", "cifar10", "image_folder", "load_pretrained", "save_pretrained",
]

# Where they stand, in the order in which the modules import each other.
_MODULES = ("schedules", "diffusion", "bound", "objective", "sampling", "unet", "data", "training",
            "evaluation", "compression", "engine.images", "engine.runs", "engine.pretrained",
            "engine.metrics")

if TYPE_CHECKING:          # a type checker sees all names at once, and none besides
    from .schedules import *
    from .diffusion import *
    from .bound import *
    from .objective import *
    from .sampling import *
    from .unet import *
    from .data import *
    from .training import *
    from .evaluation import *
    from .compression import *
    from .engine.images import *
    from .engine.runs import *
    from .engine.pretrained import *
    from .engine.metrics import *
else:
    def __getattr__(name: str) -> object:
        "Import a public name, or a chapter's module, when it is first asked for (PEP 562)."
        if name in (*_MODULES, "engine", "plotting"): return _import_module(f"{__name__}.{name}")
        for module in _MODULES if name in __all__ else ():
            home = _import_module(f"{__name__}.{module}")
            if name in home.__all__: return globals().setdefault(name, getattr(home, name))
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]: return sorted({*globals(), *__all__})

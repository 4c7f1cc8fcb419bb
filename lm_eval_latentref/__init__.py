"""Latent reasoning with refined continuous thoughts, as an lm-eval model and as a Python library.

    import lm_eval_latentref
    reasoner = lm_eval_latentref.load(latent_steps=6, memory_rate=0.3)
    print(reasoner.ask("What is 2 + 3?").text)

Importing the package does not import torch: each public name is imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lm_eval_latentref.checkpoints.loading import load
    from lm_eval_latentref.errors import LatentRefError
    from lm_eval_latentref.harness.model import LatentRefLM
    from lm_eval_latentref.latent.config import RefinementConfig
    from lm_eval_latentref.latent.reasoner import Reasoner

__all__ = ["LatentRefError", "LatentRefLM", "Reasoner", "RefinementConfig", "load"]

_MODULES = {
    "LatentRefError": "errors",
    "LatentRefLM": "harness.model",
    "Reasoner": "latent.reasoner",
    "RefinementConfig": "latent.config",
    "load": "checkpoints.loading",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("lm-eval-latentref")
    if name in _MODULES:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "__version__"])

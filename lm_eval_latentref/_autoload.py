"""Makes `lm_eval --model latentref` known to lm-eval releases that discover no plugins.

    from lm_eval_latentref import _autoload
    _autoload.install()          # what `latentref run` does; the installed .pth file does the same

The .pth file puts a finder on `sys.meta_path` that calls `find_registering_spec` when
`lm_eval.models` is first imported, and not a moment sooner: lm-eval fills in its built-in models
only while its registry is empty. Whatever goes wrong here, the interpreter and lm-eval start as if
this package were not installed.

It imports nothing but the standard library and knows the model class by its name alone.

When it goes: the release after lm-eval 0.4.13 finds the entry point `lm_eval.models` by itself, and
with it nothing here does anything. Once pyproject.toml asks for a release later than
LAST_WITHOUT_DISCOVERY, delete this module, the .pth file (packaging/autoload_line.txt, with its
lines in pyproject.toml), the call in `latentref run` and their tests.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MODEL_NAME = "latentref"
MODEL_TARGET = "lm_eval_latentref.harness.model:LatentRefLM"
LM_EVAL_MODELS = "lm_eval.models"
LAST_WITHOUT_DISCOVERY = "0.4.13"
"""The newest release of lm-eval that finds no models of other packages."""


class Finder:
    """The same finder as the .pth file's, for installs that skip .pth files."""

    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """The spec of `lm_eval.models` that registers us once it ran; None for anything else."""
        if name != LM_EVAL_MODELS:
            return None
        try:
            return find_registering_spec(cls, name, path, target)
        except Exception:
            return None


def install() -> None:
    """Registers the model class now if lm-eval's models are imported, else once they are."""
    if LM_EVAL_MODELS in sys.modules:
        register()
    elif Finder not in sys.meta_path:
        sys.meta_path.insert(0, Finder)


def find_registering_spec(
    asking: Any, name: str, path: Any = None, target: ModuleType | None = None
) -> ModuleSpec | None:
    """The spec that the finders after `asking` give for `name`, with `register` run afterwards.

    Those before it have been asked already; asking them again would never end with two of ours.
    """
    for finder in sys.meta_path[sys.meta_path.index(asking) + 1 :]:
        spec = finder.find_spec(name, path, target)
        if spec is not None:
            _register_after(spec)
            return spec
    return None


def register() -> None:
    """Puts the lazy target into lm-eval's model registry, unless it is or will be known there."""
    from lm_eval.api import registry

    models = registry.model_registry
    discovers_plugins = hasattr(registry, "load_plugins") or hasattr(models, "load_plugins")
    if not discovers_plugins and MODEL_NAME not in models:
        models.register(MODEL_NAME, target=MODEL_TARGET)


def _register_after(spec: ModuleSpec) -> None:
    """Wraps this one spec's loader; its class and everything else about it stay as they were."""
    loader: Any = spec.loader
    run_module = loader.exec_module

    def run_module_then_register(module: ModuleType) -> None:
        run_module(module)
        # lm-eval works without us, so an error of ours must not stop it.
        try:
            register()
        except Exception:
            return

    loader.exec_module = run_module_then_register

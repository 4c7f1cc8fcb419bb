"""Registers `latentref` in releases of lm-eval that do not discover models of other packages.

    from lm_eval_latentref import _autoload
    _autoload.install()          # `latentref run` calls this; the installed .pth file does the same

The .pth file adds a finder to `sys.meta_path`, which calls `find_registering_spec` when
`lm_eval.models` is first imported. Registration must not happen earlier, because lm-eval adds its
built-in models only if its registry is empty. If anything fails here, the interpreter and lm-eval
start as if this package were not installed.

This module imports only the standard library, and it refers to the model class by name.

When to delete it: the release after lm-eval 0.4.13 discovers the entry point `lm_eval.models`, and
then this module does nothing. When pyproject.toml requires a release later than
LAST_WITHOUT_DISCOVERY, delete this module, the .pth file (packaging/autoload_line.txt and its lines
in pyproject.toml), the call in `latentref run` and their tests.
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
"""The newest release of lm-eval that does not discover models of other packages."""


class Finder:
    """The finder for installations without .pth files; the .pth file has the same finder."""

    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """A spec of `lm_eval.models` that also registers our model; None for other modules."""
        if name != LM_EVAL_MODELS:
            return None
        try:
            return find_registering_spec(cls, name, path, target)
        except Exception:
            return None


def install() -> None:
    """Registers the model class, at once or when lm-eval's models are imported later."""
    if LM_EVAL_MODELS in sys.modules:
        register()
    elif Finder not in sys.meta_path:
        sys.meta_path.insert(0, Finder)


def find_registering_spec(
    asking: Any, name: str, path: Any = None, target: ModuleType | None = None
) -> ModuleSpec | None:
    """The spec for `name` from the finders after `asking`, extended so that `register` is called.

    Finders before `asking` have had their turn. Calling them again would recurse forever if two
    finders of ours were installed.
    """
    for finder in sys.meta_path[sys.meta_path.index(asking) + 1 :]:
        spec = finder.find_spec(name, path, target)
        if spec is not None:
            _register_after(spec)
            return spec
    return None


def register() -> None:
    """Adds the model class to lm-eval's registry, unless it is there or lm-eval discovers it."""
    from lm_eval.api import registry

    models = registry.model_registry
    discovers_plugins = hasattr(registry, "load_plugins") or hasattr(models, "load_plugins")
    if not discovers_plugins and MODEL_NAME not in models:
        models.register(MODEL_NAME, target=MODEL_TARGET)


def _register_after(spec: ModuleSpec) -> None:
    """Changes the loader of this spec, and no other loader, to call `register` afterwards."""
    loader: Any = spec.loader
    run_module = loader.exec_module

    def run_module_then_register(module: ModuleType) -> None:
        run_module(module)
        # An error here must not stop lm-eval, which works without this package.
        try:
            register()
        except Exception:
            return

    loader.exec_module = run_module_then_register

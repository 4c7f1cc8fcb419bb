"""Describes a run: one line for the log, and the settings that its results record.

describe(loaded, config, networks, has_markers=True)     # "backbone ...; latent_steps=6; ..."
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from lm_eval_latentref.latent.config import RefinementConfig
from lm_eval_latentref.latent.loaded import LoadedModel, LoadedSet
from lm_eval_latentref.latent.networks import Network


def describe(
    loaded: LoadedSet, config: RefinementConfig, networks: Sequence[Network], *, has_markers: bool
) -> str:
    """One line with the models and settings of a run; the first of `networks` is the backbone."""
    backbone = networks[0]
    parts = [f"backbone {name_of(loaded.backbone)}"]
    if len(networks) > 1:
        parts.append(f"strong {name_of(loaded.strong)}, weak {name_of(loaded.weak)}")
    else:
        parts.append("no references")
    in_half_d = config.search_step_size * 2 / backbone.hidden_size
    parts += [
        f"latent_kind={config.latent_kind}",
        f"latent_steps={config.latent_steps}",
        f"memory_rate={config.memory_rate:g}",
        f"search_step_size={config.search_step_size:g} ({in_half_d:g}*d/2)"
        f" x {config.search_steps} ({config.search_gradient})",
        f"markers {'on' if has_markers else 'off'}",
        f"device {', '.join(dict.fromkeys(d for n in networks for d in n.devices))}",
        f"dtype {dtype_name(backbone)}",
    ]
    return "; ".join(parts)


def settings_of(
    loaded: LoadedSet, config: RefinementConfig, backbone: Network, *, has_markers: bool
) -> dict[str, Any]:
    """Everything that determines the answers: the refinement and each checkpoint's identity."""
    checkpoints = {"backbone": loaded.backbone, "strong": loaded.strong, "weak": loaded.weak}
    return {
        # The kind does not read options that are None.
        **{k: v for k, v in dataclasses.asdict(config).items() if v is not None},
        **{k: v for k, v in config.of_kind.items() if v is not None},
        **{name: model and _identity(model) for name, model in checkpoints.items()},
        "markers": has_markers,
        "dtype": dtype_name(backbone),
    }


def name_of(loaded: LoadedModel | None) -> str:
    """The name of a checkpoint, for messages."""
    return loaded.identity["name"] if loaded else "none"


def dtype_name(network: Network) -> str:
    """The dtype in which a network computes, for messages."""
    return str(network.dtype).removeprefix("torch.")


def _identity(loaded: LoadedModel) -> dict[str, str]:
    if loaded.fingerprint is None:
        return loaded.identity
    return {**loaded.identity, "fingerprint": loaded.fingerprint()}

"""Applies a config to a checkpoint: its kind of thoughts, its markers and its stop rule.

    markers = find_markers(tokenizer, config)
    kind, stop = make_kind(tokenizer, network, config), find_stop(config, markers)

A LatentRefError says what the checkpoint or its tokenizer lacks.
"""

from __future__ import annotations

from typing import Any

from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.latent.batching import Tokens
from lm_eval_latentref.latent.config import RefinementConfig
from lm_eval_latentref.latent.contexts import Markers
from lm_eval_latentref.latent.kinds import KINDS, Kind, Materials
from lm_eval_latentref.latent.kinds.stops import STEPS, StopRule, make_stop
from lm_eval_latentref.latent.loaded import ThoughtFiles
from lm_eval_latentref.latent.networks import Network
from lm_eval_latentref.latent.protocol import marker_ids

NO_FILES = ThoughtFiles()


def find_markers(
    tokenizer: Any, config: RefinementConfig, files: ThoughtFiles = NO_FILES
) -> Markers | None:
    """The markers around the thoughts; None if there are none.

    Raises LatentRefError if the tokenizer cannot encode a marker, or has only one of Coconut's two.
    """
    kind = KINDS[config.latent_kind]
    is_auto = config.latent_markers == "auto"
    if is_auto and files.opening is not None:
        return Markers(files.opening, files.closing or ())
    texts = kind.marker_texts if is_auto else config.marker_texts
    if texts is not None:
        return Markers(*(_ids_of(tokenizer, text) for text in texts))
    if not kind.has_marker_tokens:
        return None
    ids = marker_ids(tokenizer, config.latent_markers)
    return Markers(ids[:1], ids[1:]) if ids else None


def check_ids(markers: Markers | None, network: Network, name: str) -> None:
    """Raise LatentRefError if `network`, called `name`, lacks an embedding row for a marker."""
    ids = (*markers.opening, *markers.closing) if markers else ()
    num_rows = network.num_embeddings
    if outside := [token_id for token_id in ids if token_id >= num_rows]:
        raise LatentRefError(
            f"{name} has {num_rows} embedding rows, but a marker around its thoughts has id "
            f"{outside[0]}; give weights or latent_markers that belong together"
        )


def make_kind(
    tokenizer: Any, network: Network, config: RefinementConfig, files: ThoughtFiles = NO_FILES
) -> Kind:
    """The kind of thoughts; raises LatentRefError if the checkpoint lacks what it needs."""
    return KINDS[config.latent_kind].of(
        Materials(
            network=network, tokenizer=tokenizer, options=config.of_kind, tensors=files.tensors
        )
    )


def _ids_of(tokenizer: Any, text: str) -> Tokens:
    """The token ids of a marker's text; raises LatentRefError if one is the unknown token."""
    ids = tuple(tokenizer.encode(text, add_special_tokens=False))
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids:
        raise LatentRefError(
            f"latent_markers: the tokenizer has no tokens for {text!r}; give texts that it can "
            "encode, or latent_markers=none"
        )
    return ids


def find_stop(
    config: RefinementConfig, markers: Markers | None, files: ThoughtFiles = NO_FILES
) -> StopRule | None:
    """The stop rule; None if every row thinks `latent_steps` thoughts."""
    options = config.of_kind
    rule = make_stop(
        options.get("latent_stop", STEPS),
        options.get("stop_entropy"),
        options.get("stop_patience"),
        closing=markers.closing if markers else (),
    )
    end_id = rule.end_id if rule else None
    if end_id is not None and files.num_text_ids is not None and end_id >= files.num_text_ids:
        raise LatentRefError(
            f"latent_stop={options['latent_stop']}: this checkpoint never writes the id {end_id}, "
            "which closes its thoughts; give latent_stop=steps"
        )
    return rule

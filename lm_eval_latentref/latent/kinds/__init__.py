"""Kinds of thoughts: what is fed next, and what of the model that needs.

    kind = KINDS["continuous"].of(Materials(network=network, tokenizer=tokenizer))
    vector_BD = kind.vector(state)

One module a kind, and its name in `KINDS`. Nothing outside this folder depends on which kind it is.
"""

from lm_eval_latentref.latent.kinds.base import Kind, Materials, State
from lm_eval_latentref.latent.kinds.continuous import CONTINUOUS, Continuous
from lm_eval_latentref.latent.kinds.pause import Pause

KINDS: dict[str, type[Kind]] = {kind.name: kind for kind in (Continuous, Pause)}

__all__ = ["CONTINUOUS", "KINDS", "Continuous", "Kind", "Materials", "Pause", "State"]

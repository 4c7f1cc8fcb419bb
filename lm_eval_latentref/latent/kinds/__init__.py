"""Kinds of thoughts: each computes the vector to feed next from the model's hidden state.

    kind = KINDS["mixture"].of(Materials(network=network, tokenizer=tokenizer, options=options))
    vector_BD = kind.vector(state)

Each kind has a module of its own and an entry in `KINDS`. Code outside this folder does not depend
on the kind in use.
"""

from lm_eval_latentref.latent.kinds.base import Kind, Materials, State
from lm_eval_latentref.latent.kinds.continuous import CONTINUOUS, Continuous
from lm_eval_latentref.latent.kinds.gaussian import Gaussian
from lm_eval_latentref.latent.kinds.mixture import Mixture
from lm_eval_latentref.latent.kinds.pause import Pause
from lm_eval_latentref.latent.kinds.projected import Projected
from lm_eval_latentref.latent.kinds.realigned import Realigned

_ALL: tuple[type[Kind], ...] = (Continuous, Pause, Projected, Gaussian, Mixture, Realigned)

KINDS = {kind.name: kind for kind in _ALL}

__all__ = [
    "CONTINUOUS",
    "KINDS",
    "Continuous",
    "Kind",
    "Materials",
    "Mixture",
    "Pause",
    "Realigned",
    "State",
]

"""Stop rules: when a row stops thinking before it has reached `latent_steps` thoughts.

    rule = make_stop("end_token+low_entropy", None, None, closing=(7,))
    stops_B, streaks_BE = rule.stops(kind, state, streaks_BE)

A rule is evaluated before each thought, on the logits of the last column read.

Shape suffixes: B batch, V vocabulary, E entropy stops.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.latent.kinds.base import Kind, State

if TYPE_CHECKING:
    import torch
    from torch import Tensor

STEPS, END_TOKEN = "steps", "end_token"
_ENTROPIES = {"low_entropy": (0.01, 256), "high_entropy": (5.0, 1)}
"""The default threshold in nats, and patience: `low_entropy` of Soft Thinking (arXiv:2505.15778),
`high_entropy` of LaTER."""

ALLOWED = f"{STEPS}, or one or more of {END_TOKEN}, {', '.join(_ENTROPIES)} joined by +"


@dataclass(frozen=True)
class EntropyStop:
    """Stop when the entropy of the next token has crossed a threshold for `patience` steps."""

    is_low: bool
    """True: below the threshold; False: above it."""
    threshold: float
    """In nats."""
    patience: int
    """The number of consecutive steps."""

    def holds(self, entropy_B: Tensor) -> Tensor:
        """Which rows are beyond the threshold at this step (B,), as bool."""
        return entropy_B < self.threshold if self.is_low else entropy_B > self.threshold


@dataclass(frozen=True, kw_only=True)
class StopRule:
    """A row stops if its next token is `end_id` or if one of the entropy stops applies."""

    end_id: int | None = None
    """The end token; None if no token ends the thoughts."""
    entropies: tuple[EntropyStop, ...] = ()

    def start(self, num_rows: int, device: torch.device) -> Tensor:
        """Streaks (B, E) before the first thought: all zero."""
        import torch

        return torch.zeros(num_rows, len(self.entropies), dtype=torch.long, device=device)

    def stops(self, kind: Kind, state: State, streaks_BE: Tensor) -> tuple[Tensor, Tensor]:
        """Which rows stop here (B,), as bool, and the new streaks (B, E).

        Args:
            streaks_BE: for how many steps in a row each entropy stop has held.
        """
        import torch

        stops_B = torch.zeros(state.num_rows, dtype=torch.bool, device=streaks_BE.device)
        if self.end_id is not None:
            stops_B |= kind.ends(state, self.end_id)
        if self.entropies:
            entropy_B = _entropy(state.logits_BV / kind.temperature)
            holds_BE = torch.stack([stop.holds(entropy_B) for stop in self.entropies], dim=1)
            streaks_BE = torch.where(holds_BE, streaks_BE + 1, 0)
            patience_E = streaks_BE.new_tensor([stop.patience for stop in self.entropies])
            stops_B |= (streaks_BE >= patience_E).any(1)
        return stops_B, streaks_BE


def check_stop(text: str, entropy: float | None, patience: int | None) -> None:
    """Raise LatentRefError unless `text` is a valid `latent_stop` to which the numbers apply."""
    names = text.split("+")
    known = {STEPS} if text == STEPS else {END_TOKEN, *_ENTROPIES}
    if not set(names) <= known or len(set(names)) < len(names):
        raise LatentRefError(f"latent_stop={text}: it must be {ALLOWED}")
    for option, value in (("stop_entropy", entropy), ("stop_patience", patience)):
        num_readers = len(set(names) & _ENTROPIES.keys())
        if value is not None and num_readers != 1:
            raise LatentRefError(
                f"{option}={value:g} with latent_stop={text}: it needs a latent_stop with exactly "
                f"one of {', '.join(_ENTROPIES)}; leave it out or change latent_stop"
            )


def make_stop(
    text: str, entropy: float | None, patience: int | None, *, closing: tuple[int, ...]
) -> StopRule | None:
    """The rule of `latent_stop=text`; None if every row thinks `latent_steps` thoughts.

    Args:
        entropy, patience: replace the defaults of the entropy stop; None: the defaults.
        closing: the ids that close the thoughts; the first is the end token.
    """
    names = text.split("+")
    if STEPS in names:
        return None
    if END_TOKEN in names and not closing:
        raise LatentRefError(
            f"latent_stop={text} needs a token that ends the thoughts, and there is none; give "
            "latent_markers=OPEN|CLOSE, for example <think>|</think>"
        )
    entropies = tuple(
        EntropyStop(name == "low_entropy", entropy or nats, patience or steps)
        for name, (nats, steps) in _ENTROPIES.items()
        if name in names
    )
    return StopRule(end_id=closing[0] if END_TOKEN in names else None, entropies=entropies)


def _entropy(logits_BV: Tensor) -> Tensor:
    log_p_BV = logits_BV.log_softmax(-1)
    # The clamp makes an impossible token (logit -inf) contribute 0 and not nan.
    return -(log_p_BV.exp() * log_p_BV.clamp(min=-1e30)).sum(-1)

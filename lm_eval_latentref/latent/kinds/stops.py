"""When a row stops thinking before it has thought as many thoughts as it may.

    rule = make_stop("end_token+low_entropy", None, None, closing=(7,))
    stops_B, streaks_BE = rule.stops(kind, state, streaks_BE)

The rule is asked before each thought is fed, by the logits of the last column read.

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
"""Nats and patience of each by default: Soft Thinking's, and LaTER's."""

ALLOWED = f"{STEPS}, or one or more of {END_TOKEN}, {', '.join(_ENTROPIES)} joined by +"


@dataclass(frozen=True)
class EntropyStop:
    """Stop once the entropy has been beyond a threshold for some steps in a row."""

    is_low: bool
    threshold: float
    """In nats."""
    patience: int

    def holds(self, entropy_B: Tensor) -> Tensor:
        return entropy_B < self.threshold if self.is_low else entropy_B > self.threshold


@dataclass(frozen=True, kw_only=True)
class StopRule:
    """A row stops as soon as one of these says so."""

    end_id: int | None = None
    """The token that ends thinking if it comes next; None: none does."""
    entropies: tuple[EntropyStop, ...] = ()

    def start(self, num_rows: int, device: torch.device) -> Tensor:
        """For how many steps each entropy stop has held (B, E): none."""
        import torch

        return torch.zeros(num_rows, len(self.entropies), dtype=torch.long, device=device)

    def stops(self, kind: Kind, state: State, streaks_BE: Tensor) -> tuple[Tensor, Tensor]:
        """Which rows stop here (B,), and the number of steps that each entropy stop has held."""
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
    """Raise LatentRefError unless `text` names stops, and the numbers belong to one of them."""
    names = text.split("+")
    known = {STEPS} if text == STEPS else {END_TOKEN, *_ENTROPIES}
    if not set(names) <= known or len(set(names)) < len(names):
        raise LatentRefError(f"latent_stop={text}: it must be {ALLOWED}")
    for option, value in (("stop_entropy", entropy), ("stop_patience", patience)):
        num_readers = len(set(names) & _ENTROPIES.keys())
        if value is not None and num_readers != 1:
            which = "none of" if num_readers == 0 else "both"
            raise LatentRefError(
                f"{option}={value:g} with latent_stop={text}: it is the value of one entropy stop, "
                f"and there are {which} {' and '.join(_ENTROPIES)}; leave it out or change "
                "latent_stop"
            )


def make_stop(
    text: str, entropy: float | None, patience: int | None, *, closing: tuple[int, ...]
) -> StopRule | None:
    """The rule called `text`; None if all rows think as many thoughts as they may.

    Args:
        entropy, patience: of an entropy stop, in place of its defaults.
        closing: the ids that end the thoughts; the first is the end token.
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
    # A token that cannot come, of logit -inf, adds nothing.
    return -(log_p_BV.exp() * log_p_BV.clamp(min=-1e30)).sum(-1)

"""Contrastive search: moves a hidden state from the weak reference's towards the strong one's.

    search = Search(references, context)
    search.move = Move(kind, state, raw_BD)
    thought_BD, finite_B = search.run(mixed_BD, config)
    search.commit(thought_BD)

Shape suffixes: B batch, D hidden size.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lm_eval_latentref.latent.config import RefinementConfig
from lm_eval_latentref.latent.contexts import Context
from lm_eval_latentref.latent.kinds import Kind, State
from lm_eval_latentref.latent.networks import Network
from lm_eval_latentref.latent.references import References, ReferenceStream
from lm_eval_latentref.latent.refinement import contrastive_loss, contrastive_step


@dataclass(frozen=True)
class Move:
    """Converts between the hidden state, which the search moves, and the vector that is fed.

    The search compares the hidden state with the references' hidden states. For kinds that feed the
    hidden state itself, both are the same vector.
    """

    kind: Kind
    state: State
    raw_BD: Tensor

    def start(self, mixed_BD: Tensor) -> Tensor:
        """The hidden state (B, D) from which the search starts; `mixed_BD`: the mixed thought."""
        return mixed_BD if self.kind.is_identity else self.state.hidden_BD

    def vector(self, hidden_BD: Tensor, mixed_BD: Tensor) -> Tensor:
        """The vector (B, D) to feed after the search has moved the hidden state to `hidden_BD`."""
        if self.kind.is_identity:
            return hidden_BD
        moved_BD = self.kind.vector(dataclasses.replace(self.state, hidden=hidden_BD))
        return mixed_BD + (moved_BD - self.raw_BD)


class Search:
    """Contrastive reasoning feedback search; both references read every refined thought."""

    move: Move
    """Set for each thought before `run`."""

    def __init__(self, references: References, context: Context) -> None:
        self._strong = ReferenceStream(references.strong, context)
        self._weak = ReferenceStream(references.weak, context)

    def fork(self, rows: Sequence[int] | None = None) -> Search:
        branch = copy.copy(self)
        branch._strong, branch._weak = self._strong.fork(rows), self._weak.fork(rows)
        return branch

    @property
    def networks(self) -> tuple[Network, Network]:
        return self._strong.network, self._weak.network

    def abreast(self, num: int, num_rows: int) -> Search:
        branch = copy.copy(self)
        branch._strong = self._strong.abreast(num, num_rows)
        branch._weak = self._weak.abreast(num, num_rows)
        return branch

    def read(self) -> None:
        """Let both references read all columns up to now."""
        self._strong.read()
        self._weak.read()

    def commit(self, thought_BD: Tensor) -> None:
        self._strong.commit(thought_BD)
        self._weak.commit(thought_BD)

    def read_ahead(self, thought_BD: Tensor, config: RefinementConfig) -> None:
        """Let both references read the context and, with `detached`, compute their states."""
        for reference in (self._strong, self._weak):
            if config.search_gradient == "through":
                reference.read()
            else:
                reference.read_ahead(thought_BD)

    def run(self, thought_BD: Tensor, config: RefinementConfig) -> tuple[Tensor, Tensor]:
        """The thought (B, D) after all updates, and whether the states were finite (B,)."""
        update = self._through if config.search_gradient == "through" else self._detached
        finite_B = torch.ones_like(thought_BD[:, 0], dtype=torch.bool)
        mixed_BD, hidden_BD = thought_BD, self.move.start(thought_BD)
        for _ in range(config.search_steps):
            hidden_BD, step_finite_B = update(hidden_BD, thought_BD, mixed_BD, config)
            thought_BD = self.move.vector(hidden_BD, mixed_BD)
            finite_B = finite_B & step_finite_B
        return thought_BD, finite_B

    def _detached(
        self, hidden_BD: Tensor, thought_BD: Tensor, _: Tensor, config: RefinementConfig
    ) -> tuple[Tensor, Tensor]:
        good_BD = self._strong.probe(thought_BD).to(thought_BD.device)
        bad_BD = self._weak.probe(thought_BD).to(thought_BD.device)
        step_size = config.search_step_size
        moved_BD = contrastive_step(hidden_BD, good_BD, bad_BD, step_size=step_size)
        return moved_BD, finite_rows(good_BD) & finite_rows(bad_BD)

    def _through(
        self, hidden_BD: Tensor, _: Tensor, mixed_BD: Tensor, config: RefinementConfig
    ) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf_BD = hidden_BD.detach().requires_grad_()
            fed_BD = self.move.vector(leaf_BD, mixed_BD)
            good_BD = self._strong.probe_with_gradient(fed_BD).to(leaf_BD.device)
            bad_BD = self._weak.probe_with_gradient(fed_BD).to(leaf_BD.device)
            # Rows do not mix, so the gradient of the sum is each row's own gradient.
            loss = contrastive_loss(leaf_BD, good_BD, bad_BD).sum()
            (gradient_BD,) = torch.autograd.grad(loss, leaf_BD)
        moved_BD = hidden_BD - config.search_step_size * gradient_BD
        return moved_BD, finite_rows(good_BD) & finite_rows(bad_BD)


def finite_rows(rows_BD: Tensor) -> Tensor:
    """Whether each row is finite (B,)."""
    return rows_BD.isfinite().all(-1)

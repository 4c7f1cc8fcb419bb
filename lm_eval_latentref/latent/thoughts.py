"""The thought loop: continuous thoughts, each refined before it is committed.

    thoughts = think(context, backbone=network, references=None, config=config, markers=markers)
    hidden_BPD = thoughts.stream.feed(thoughts.pending_BPD, thoughts.pending_mask_BP)

Inference and training use the same loop: it is differentiable, and the caller switches gradients
off. `Thinking` is the state of the loop, for callers that continue from one reading in several
ways. What is fed as a thought is the business of `kinds`; the two refinements are those of Wang et
al. (arXiv:2506.08552).

Shape suffixes: B batch, C context columns, P pending columns, T thoughts, D hidden size.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lm_eval_latentref.latent.config import RefinementConfig
from lm_eval_latentref.latent.kinds import CONTINUOUS, Kind, State
from lm_eval_latentref.latent.networks import Network
from lm_eval_latentref.latent.references import ReferenceStream as _Reference
from lm_eval_latentref.latent.refinement import contrastive_loss, contrastive_step, mix_residual
from lm_eval_latentref.latent.streams import Stream, extended


@dataclass(frozen=True)
class Context:
    """A batch of contexts, padded on the left."""

    ids_BC: Tensor
    mask_BC: Tensor | None
    """bool; None when no row is padded."""

    @classmethod
    def pad(cls, rows: Sequence[Sequence[int]], *, device: torch.device | str = "cpu") -> Context:
        """The batch of `rows`, each a non-empty list of token ids."""
        longest = max(map(len, rows))
        ids_BC = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows])
        if min(map(len, rows)) == longest:
            return cls(ids_BC.to(device, non_blocking=True), None)
        lengths_B = torch.tensor([len(row) for row in rows])
        mask_BC = torch.arange(longest) >= longest - lengths_B.unsqueeze(1)
        # Pageable memory is staged at once, so that nothing waits for the device.
        return cls(*(tensor.to(device, non_blocking=True) for tensor in (ids_BC, mask_BC)))

    def in_parts(self, max_columns: int) -> list[Context]:
        """These contexts in as few equal parts as possible, each of at most `max_columns` columns.

        A row that is longer than that is a part of its own.
        """
        num_rows, num_columns = self.ids_BC.shape
        num_parts = math.ceil(num_rows / max(1, max_columns // num_columns))
        masks = [None] * num_parts if self.mask_BC is None else self.mask_BC.tensor_split(num_parts)
        return [
            Context(ids_BC, mask_BC)
            for ids_BC, mask_BC in zip(self.ids_BC.tensor_split(num_parts), masks, strict=True)
        ]

    def then(self, ids: Sequence[int]) -> Context:
        """These contexts with the tokens `ids` at the end of each."""
        new_BL = self.ids_BC.new_tensor(ids).expand(len(self.ids_BC), -1)
        ids_BC = torch.cat([self.ids_BC, new_BL], dim=1)
        return Context(ids_BC, extended(self.mask_BC, len(ids)))


@dataclass(frozen=True)
class Markers:
    """Ids of the tokens before and after the thoughts; one of the two may be empty."""

    opening: tuple[int, ...]
    closing: tuple[int, ...]


@dataclass(frozen=True)
class References:
    """The two networks that define the search direction, from weak to strong."""

    strong: Network
    weak: Network


@dataclass(frozen=True)
class Thoughts:
    """The result of thinking: everything that the continuation is conditioned on.

    The last columns (`pending`) are not read yet, so that the caller can read them together with
    the continuation and no column is read twice.
    """

    stream: Stream
    pending_BPD: Tensor
    pending_mask_BP: Tensor | None
    thoughts_BTD: Tensor
    """z_1..z_T as committed, in the backbone's dtype."""
    finite_BT3: Tensor
    """bool: whether the backbone's hidden state, the references' hidden states and the refined
    thought are finite."""

    @classmethod
    def join(cls, parts: Sequence[Thoughts]) -> Thoughts:
        """The rows of all `parts`, whose padded contexts must be equally long.

        The given parts cannot be used any more.
        """
        if len(parts) == 1:
            return parts[0]
        masks = [part.pending_mask_BP for part in parts if part.pending_mask_BP is not None]
        return cls(
            Stream.join([part.stream for part in parts]),
            torch.cat([part.pending_BPD for part in parts]),
            torch.cat(masks) if masks else None,
            torch.cat([part.thoughts_BTD for part in parts]),
            torch.cat([part.finite_BT3 for part in parts]),
        )

    def select(self, rows: Sequence[int]) -> Thoughts:
        """The same thoughts for `rows` of the batch, in that order; a row may occur twice."""
        rows_R = torch.as_tensor(rows, device=self.pending_BPD.device)
        mask_BP = self.pending_mask_BP
        return Thoughts(
            self.stream.fork(rows),
            self.pending_BPD[rows_R],
            None if mask_BP is None else mask_BP[rows_R.to(mask_BP.device)],
            self.thoughts_BTD[rows_R],
            self.finite_BT3[rows_R.to(self.finite_BT3.device)],
        )


def think(
    context: Context,
    *,
    backbone: Network,
    references: References | None,
    config: RefinementConfig,
    markers: Markers | None,
    kind: Kind = CONTINUOUS,
) -> Thoughts:
    """Think `config.latent_steps` thoughts about each context.

    Args:
        references: needed if `config.searches`.
        markers: None if the thoughts follow the context directly.
        kind: what is fed as a thought.
    """
    thinking = Thinking(
        context,
        backbone=backbone,
        references=references if config.searches else None,
        markers=markers,
        kind=kind,
    )
    for _ in range(config.latent_steps):
        thinking.step(config)
    return thinking.finish()


class Thinking:
    """The state of the models at some point of the thought loop; forks continue independently.

    Nothing is read before it is needed: pending columns are read together with the next ones.
    """

    def __init__(
        self,
        context: Context,
        *,
        backbone: Network,
        references: References | None,
        markers: Markers | None,
        kind: Kind = CONTINUOUS,
    ) -> None:
        if markers is not None:
            context = context.then(markers.opening)
        self._markers, self._kind = markers, kind
        self._stream = Stream(backbone)
        self._pending_BPD = backbone.embed(context.ids_BC)
        self._pending_mask_BP = context.mask_BC
        self._state: State | None = None
        self._search = _Search(references, context) if references else None
        self._thoughts: list[Tensor] = []
        self._finite: list[Tensor] = []

    def fork(self) -> Thinking:
        """An independent copy of this state; the columns read so far are shared."""
        branch = copy.copy(self)
        branch._stream = self._stream.fork()
        branch._search = self._search.fork() if self._search else None
        branch._thoughts, branch._finite = list(self._thoughts), list(self._finite)
        return branch

    def read_but_last(self) -> None:
        """Let the backbone read the pending columns, except the last."""
        if self._pending_BPD.shape[1] > 1:
            self._feed(self._pending_BPD.shape[1] - 1)

    def read(self, config: RefinementConfig) -> None:
        """Do the work of the next `step` that does not depend on memory rate and step size.

        The backbone reads the pending columns. If `config` searches, the references read the first
        raw thought as well; later thoughts are mixed with their predecessor before the references
        see them.
        """
        state = self._read_state()
        if self._search is not None and config.searches and not self._thoughts:
            self._search.foresee(self._kind.vector(state), config)

    def step(self, config: RefinementConfig) -> None:
        """Think one more thought and refine it as `config` says."""
        state = self._read_state()
        if not config.searches:
            self._search = None  # references that are not asked need not read the thoughts
        raw_BD = self._kind.vector(state)
        if self._search is not None:
            self._search.move = _Move(self._kind, state, raw_BD)
        refined_BD, states_finite_B = _refine(raw_BD, self._thoughts, self._search, config)
        thought_BD = refined_BD.to(self._stream.network.dtype)
        self._thoughts.append(thought_BD)
        flags = [_finite(raw_BD), states_finite_B, _finite(thought_BD)]
        self._finite.append(torch.stack(flags, -1))
        if self._search is not None:
            self._search.commit(thought_BD)
        self._append(thought_BD)

    def finish(self) -> Thoughts:
        """The thoughts so far, closed by the end marker; fork first to think further."""
        pending_BPD, mask_BP = _append_end(
            self._pending_BPD, self._pending_mask_BP, self._stream.network, self._markers
        )
        if not self._thoughts:
            none_BTD = pending_BPD[:, :0]
            no_flags_BT3 = torch.ones(*none_BTD.shape[:2], 3, dtype=torch.bool)
            return Thoughts(self._stream, pending_BPD, mask_BP, none_BTD, no_flags_BT3)
        thoughts_BTD, finite_BT3 = torch.stack(self._thoughts, 1), torch.stack(self._finite, 1)
        return Thoughts(self._stream, pending_BPD, mask_BP, thoughts_BTD, finite_BT3)

    def _read_state(self) -> State:
        """What the next thought is a function of."""
        if self._state is None:
            hidden_BD = None
            if self._kind.reads_state:
                # Column -1 is real in every row, because padding is on the left only.
                hidden_BD = self._feed(self._pending_BPD.shape[1])[:, -1].float()
            network, num_rows = self._stream.network, len(self._pending_BPD)
            self._state = State(network=network, num_rows=num_rows, hidden=hidden_BD)
        return self._state

    def _append(self, thought_BD: Tensor) -> None:
        """Let the thought be read next."""
        new_BPD = thought_BD.unsqueeze(1)
        self._pending_BPD = torch.cat([self._pending_BPD, new_BPD.to(self._pending_BPD)], dim=1)
        self._pending_mask_BP = extended(self._pending_mask_BP, 1)
        self._state = None

    def _feed(self, num_columns: int) -> Tensor:
        read_BPD, self._pending_BPD = (
            self._pending_BPD[:, :num_columns],
            self._pending_BPD[:, num_columns:],
        )
        mask_BP, self._pending_mask_BP = self._pending_mask_BP, None
        return self._stream.feed(read_BPD, None if mask_BP is None else mask_BP[:, :num_columns])


@dataclass(frozen=True)
class _Move:
    """How a moved hidden state moves the vector that is fed.

    The search moves the hidden state, where its squared error has a meaning. Where the vector is
    the hidden state itself, both are one.
    """

    kind: Kind
    state: State
    raw_BD: Tensor

    def start(self, mixed_BD: Tensor) -> Tensor:
        """The hidden state (B, D) from which the search starts."""
        return mixed_BD if self.kind.is_identity else self.state.hidden_BD

    def vector(self, hidden_BD: Tensor, mixed_BD: Tensor) -> Tensor:
        """The vector (B, D) to feed once the search is at `hidden_BD`."""
        if self.kind.is_identity:
            return hidden_BD
        moved_BD = self.kind.vector(dataclasses.replace(self.state, hidden=hidden_BD))
        return mixed_BD + (moved_BD - self.raw_BD)


def _refine(
    raw_BD: Tensor, previous: Sequence[Tensor], search: _Search | None, config: RefinementConfig
) -> tuple[Tensor, Tensor]:
    """The refined thought (B, D) in float32, and whether the references' states are finite (B,)."""
    thought_BD = raw_BD
    if previous:  # the first thought has no predecessor to keep
        thought_BD = mix_residual(raw_BD, previous[-1], memory_rate=config.memory_rate)
    if search is None:
        return thought_BD, torch.ones_like(thought_BD[:, 0], dtype=torch.bool)
    return search.run(thought_BD, config)


class _Search:
    """Contrastive reasoning feedback search; both references read the refined thoughts."""

    move: _Move
    """Of the thought at hand."""

    def __init__(self, references: References, context: Context) -> None:
        self._strong = _Reference(references.strong, context.ids_BC, context.mask_BC)
        self._weak = _Reference(references.weak, context.ids_BC, context.mask_BC)

    def fork(self) -> _Search:
        branch = copy.copy(self)
        branch._strong, branch._weak = self._strong.fork(), self._weak.fork()
        return branch

    def commit(self, thought_BD: Tensor) -> None:
        self._strong.commit(thought_BD)
        self._weak.commit(thought_BD)

    def foresee(self, thought_BD: Tensor, config: RefinementConfig) -> None:
        """Let both references read the context and, with `detached`, probe `thought_BD`."""
        for reference in (self._strong, self._weak):
            if config.search_gradient == "through":
                reference.read()
            else:
                reference.foresee(thought_BD)

    def run(self, thought_BD: Tensor, config: RefinementConfig) -> tuple[Tensor, Tensor]:
        ask = self._through if config.search_gradient == "through" else self._detached
        finite_B = torch.ones_like(thought_BD[:, 0], dtype=torch.bool)
        mixed_BD, hidden_BD = thought_BD, self.move.start(thought_BD)
        for _ in range(config.search_steps):
            hidden_BD, step_finite_B = ask(hidden_BD, thought_BD, mixed_BD, config)
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
        return moved_BD, _finite(good_BD) & _finite(bad_BD)

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
        return moved_BD, _finite(good_BD) & _finite(bad_BD)


def _append_end(
    columns_BLD: Tensor, mask_BL: Tensor | None, backbone: Network, markers: Markers | None
) -> tuple[Tensor, Tensor | None]:
    if markers is None:
        return columns_BLD, mask_BL
    end_L = torch.tensor(markers.closing, dtype=torch.long, device=backbone.device)
    end_BLD = backbone.embed(end_L.expand(len(columns_BLD), -1)).to(columns_BLD)
    return torch.cat([columns_BLD, end_BLD], dim=1), extended(mask_BL, len(end_L))


def _finite(rows_BD: Tensor) -> Tensor:
    return rows_BD.isfinite().all(-1)

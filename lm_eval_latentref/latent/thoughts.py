"""The thought loop: continuous thoughts, each refined before it is committed.

    thoughts = think(context, backbone=network, references=None, config=config, markers=markers)
    hidden_BPD = thoughts.stream.feed(thoughts.pending_BPD, thoughts.pending_mask_BP)

Inference and training use the same loop. It is differentiable, so the caller switches gradients off
for inference. `Thinking` is the state of the loop; callers fork it to continue from the same
contexts in several ways. `kinds` defines the vector that is fed as a thought. The two refinements,
residual mixing and contrastive search, are those of Wang et al. (arXiv:2506.08552).

Shape suffixes: B batch, C context columns, P pending columns, L columns, T thoughts, D hidden size,
E entropy stops. The last dimension of `finite_BT3`: raw thought, references' states, refined
thought.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from lm_eval_latentref.latent.abreast import Abreast
from lm_eval_latentref.latent.config import RefinementConfig
from lm_eval_latentref.latent.contexts import Context, Markers
from lm_eval_latentref.latent.dropout import dropping
from lm_eval_latentref.latent.kinds import CONTINUOUS, Kind, State
from lm_eval_latentref.latent.kinds.draws import Draws
from lm_eval_latentref.latent.kinds.stops import StopRule
from lm_eval_latentref.latent.networks import Network
from lm_eval_latentref.latent.references import References
from lm_eval_latentref.latent.refinement import mix_residual
from lm_eval_latentref.latent.search import Move, Search, finite_rows
from lm_eval_latentref.latent.streams import Stream, extended, picked
from lm_eval_latentref.latent.thoughtful import Thoughts


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
        references: required if `config.searches`.
        markers: the tokens around the thoughts; None if the thoughts follow the context directly.
        kind: the kind of thought.
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
    """The state of all models at some point of the thought loop; forks continue independently.

    Columns are read as late as possible: pending columns are read together with the next ones.

    Args:
        references: required for configs that search.
        markers: the tokens around the thoughts; None if the thoughts follow the context directly.
        kind: the kind of thought.
        stops_early: whether `stops` will be called.
    """

    def __init__(
        self,
        context: Context,
        *,
        backbone: Network,
        references: References | None,
        markers: Markers | None,
        kind: Kind = CONTINUOUS,
        stops_early: bool = False,
    ) -> None:
        if markers is not None:
            context = context.then(markers.opening)
        self._markers, self.kind = markers, kind
        self._draws: Draws | None = None
        self._dropout = 0.0
        # A row may stop when all columns are read and no closing marker follows; `finish` then
        # crops the last column, to read it again.
        rereads = stops_early and not (markers and markers.closing)
        self._stream, unread = context.begin(backbone, can_crop=rereads)
        self._last_B1D: Tensor | None = None
        self._streaks_BE: Tensor | None = None
        self._pending_BPD, self._pending_mask_BP = backbone.embed(unread.ids_BC), unread.mask_BC
        self._state: State | None = None
        self._search = Search(references, context) if references else None
        self._thoughts: list[Tensor] = []
        self._finite: list[Tensor] = []

    @property
    def num_rows(self) -> int:
        return len(self._pending_BPD)

    def fork(self) -> Thinking:
        """An independent copy of this state; it shares the columns read so far."""
        branch = copy.copy(self)
        branch._stream = self._stream.fork()
        branch._search = self._search.fork() if self._search else None
        branch._thoughts, branch._finite = list(self._thoughts), list(self._finite)
        return branch

    def select(self, rows: Sequence[int]) -> Thinking:
        """An independent copy with the given rows, in the given order; a row may occur twice."""
        if list(rows) == list(range(self.num_rows)):
            return self.fork()
        search = self._search.fork(rows) if self._search else None
        return self._of_rows(rows, self._stream.fork(rows), search)

    @property
    def is_finite(self) -> bool:
        """Whether the newest thought and the states it was computed from are finite in all rows."""
        return bool(self._finite[-1].all())

    @property
    def reads_abreast(self) -> bool:
        """Whether all models can read copies side by side."""
        networks = [self._stream.network, *(self._search.networks if self._search else ())]
        return all(network.takes_branches for network in networks)

    def abreast(self, num: int) -> Thinking:
        """`num` copies of all rows, one copy after another; one forward reads a thought of each.

        Call it after `read`, and only if `reads_abreast`.
        """
        rows = [*range(self.num_rows)]
        search = self._search.abreast(num, len(rows)) if self._search else None
        return self._of_rows(rows * num, Abreast(self._stream, num, len(rows)), search)

    def _of_rows(self, rows: Sequence[int], stream: Stream, search: Search | None) -> Thinking:
        branch = copy.copy(self)
        branch._stream, branch._search = stream, search
        branch._thoughts = [thought_BD[list(rows)] for thought_BD in self._thoughts]
        branch._finite = [finite_B3[list(rows)] for finite_B3 in self._finite]
        for name in ("_pending_BPD", "_pending_mask_BP", "_last_B1D", "_streaks_BE"):
            setattr(branch, name, picked(getattr(self, name), rows))
        branch._draws = self._draws.select(rows) if self._draws else None
        branch._state = None if self._state is None else self._state.select(rows)
        return branch

    def samples(self, rows: Sequence[int], draws: Draws, dropout: float = 0.0) -> Thinking:
        """Several samples of these contexts; each context is read once, here.

        Args:
            rows: the row of this batch that each sample continues from.
            draws: the source of each sample's random numbers.
            dropout: probability of dropping a component of a residual branch, in thoughts only.
        """
        self.read_but_last()
        if self._search is not None:
            self._search.read()
        branch = self.select(rows)
        branch._draws, branch._dropout = draws, dropout
        return branch

    @property
    def num_closing(self) -> int:
        """The number of tokens after the thoughts."""
        return len(self._markers.closing) if self._markers else 0

    def after_context(self) -> Stream:
        """A stream that has read all columns so far, pending ones included."""
        if self._pending_BPD.shape[1]:
            self._read_state()
        if self._pending_BPD.shape[1]:  # the kind reads no hidden states
            self._feed(self._pending_BPD.shape[1])
        return self._stream.fork()

    def stops(self, rule: StopRule) -> Tensor:
        """Which rows stop here (B,), as bool; call it once before each thought."""
        state = self._read_state()
        if self._streaks_BE is None:
            self._streaks_BE = rule.start(self.num_rows, state.hidden_BD.device)
        stops_B, self._streaks_BE = rule.stops(self.kind, state, self._streaks_BE)
        return stops_B

    def read_but_last(self) -> None:
        """Let the backbone read all pending columns but the last."""
        if self._pending_BPD.shape[1] > 1:
            self._feed(self._pending_BPD.shape[1] - 1)

    def read(self, config: RefinementConfig) -> None:
        """Do the part of the next `step` that does not depend on memory rate or step size.

        The backbone reads the pending columns. If `config` searches, the references also read the
        context and the first raw thought. They cannot read later raw thoughts, which are first
        mixed with the previous thought.
        """
        state = self._read_state()
        if self._search is not None and config.searches and not self._thoughts:
            self._search.read_ahead(self.kind.vector(state), config)

    def step(self, config: RefinementConfig, memory_rates: Sequence[float] = ()) -> None:
        """Think one more thought and refine it as specified by `config`.

        Args:
            memory_rates: the memory rate of each copy that `abreast` made, in place of that of
                `config`.
        """
        state = self._read_state()
        if not config.searches:
            self._search = None  # the references need not read the thoughts
        raw_BD = self.kind.vector(state)
        if self._search is not None:
            self._search.move = Move(self.kind, state, raw_BD)
        start_BD, previous = raw_BD, self._thoughts
        if memory_rates and previous:
            start_BD, previous = _mixed_apart(raw_BD, previous[-1], memory_rates), []
        refined_BD, states_finite_B = _refine(start_BD, previous, self._search, config)
        if config.thought_noise:
            noise_BD = state.normal("noise", refined_BD.shape[-1])
            refined_BD = refined_BD + config.thought_noise * noise_BD
        thought_BD = refined_BD.to(self._stream.network.dtype)
        self._thoughts.append(thought_BD)
        flags = [finite_rows(raw_BD), states_finite_B, finite_rows(thought_BD)]
        self._finite.append(torch.stack(flags, -1))
        if self._search is not None:
            self._search.commit(thought_BD)
        self._append(thought_BD)

    def finish(self) -> Thoughts:
        """The thoughts so far, followed by the closing markers; fork first to think further."""
        if self._dropout and self.num_closing:
            self._read_thoughts()
        if self._pending_BPD.shape[1] == 0 and not (self._markers and self._markers.closing):
            assert self._last_B1D is not None
            self._stream.crop(1)
            self._pending_BPD = self._last_B1D
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
        """The state from which the next thought is computed; reads pending columns if necessary."""
        if self._state is None:
            hidden_BD = None
            if self.kind.reads_state:
                # Column -1 is real in every row, because padding is on the left only.
                with self._dropping():
                    hidden_BD = self._feed(self._pending_BPD.shape[1])[:, -1].float()
            network, num_rows = self._stream.network, len(self._pending_BPD)
            self._state = State(
                network=network,
                num_rows=num_rows,
                hidden=hidden_BD,
                step=len(self._thoughts),
                draws=self._draws,
            )
        return self._state

    def _read_thoughts(self) -> None:
        """Read the pending thoughts, with dropout as all thoughts; nothing else stays pending."""
        num_pending = self._pending_BPD.shape[1]
        num_thoughts = min(len(self._thoughts), num_pending)  # they are the last columns
        if num_pending > num_thoughts > 0:
            self._feed(num_pending - num_thoughts)
        if num_thoughts:
            with self._dropping():
                self._feed(num_thoughts)

    def _dropping(self) -> AbstractContextManager[None]:
        """A context manager: dropout if the pending columns are a thought, none for the context."""
        if not self._dropout or not self._thoughts or self._draws is None:
            return nullcontext()
        step = len(self._thoughts)
        return dropping(self._stream.network, self._dropout, self._draws, step=step)

    def _append(self, thought_BD: Tensor) -> None:
        """Add the thought to the pending columns."""
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
        self._last_B1D = read_BPD[:, -1:]
        return self._stream.feed(read_BPD, None if mask_BP is None else mask_BP[:, :num_columns])


def _refine(
    raw_BD: Tensor, previous: Sequence[Tensor], search: Search | None, config: RefinementConfig
) -> tuple[Tensor, Tensor]:
    """The refined thought (B, D) in float32, and whether the references' states are finite (B,)."""
    thought_BD = raw_BD
    if previous:
        thought_BD = mix_residual(raw_BD, previous[-1], memory_rate=config.memory_rate)
    if search is None:
        return thought_BD, torch.ones_like(thought_BD[:, 0], dtype=torch.bool)
    return search.run(thought_BD, config)


def _mixed_apart(raw_BD: Tensor, previous_BD: Tensor, memory_rates: Sequence[float]) -> Tensor:
    """The mixed thoughts (B, D) of several copies of rows, each with its own memory rate."""
    rates_G = raw_BD.new_tensor(memory_rates)
    rates_B1 = rates_G.repeat_interleave(len(raw_BD) // len(rates_G)).unsqueeze(1)
    return mix_residual(raw_BD, previous_BD, memory_rate=rates_B1)


def _append_end(
    columns_BLD: Tensor, mask_BL: Tensor | None, backbone: Network, markers: Markers | None
) -> tuple[Tensor, Tensor | None]:
    if markers is None:
        return columns_BLD, mask_BL
    end_L = torch.tensor(markers.closing, dtype=torch.long, device=backbone.device)
    end_BLD = backbone.embed(end_L.expand(len(columns_BLD), -1)).to(columns_BLD)
    return torch.cat([columns_BLD, end_BLD], dim=1), extended(mask_BL, len(end_L))

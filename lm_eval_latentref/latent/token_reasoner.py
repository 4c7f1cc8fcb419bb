"""Thinks about batches of token ids, and scores or generates text afterwards.

    reasoner = TokenReasoner(loaded, RefinementConfig(latent_steps=6, memory_rate=0.3))
    scores = reasoner.score(contexts, continuations, max_rows=8)

The lm-eval model class is built on it; `Reasoner` adds questions and answers as text.

Shape suffixes: B batch, K columns, T thoughts, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.latent.accounting import Accounting
from lm_eval_latentref.latent.batching import Tokens
from lm_eval_latentref.latent.config import RefinementConfig
from lm_eval_latentref.latent.continuing import inputs_after
from lm_eval_latentref.latent.description import describe, dtype_name, name_of, settings_of
from lm_eval_latentref.latent.dropout import check_droppable
from lm_eval_latentref.latent.groups import Group, expanded, think_about
from lm_eval_latentref.latent.lengths import check_length, check_table
from lm_eval_latentref.latent.loaded import LoadedModel, LoadedSet
from lm_eval_latentref.latent.networks import Network
from lm_eval_latentref.latent.prefixes import Trunks
from lm_eval_latentref.latent.protocol import protocol_named
from lm_eval_latentref.latent.scoring import Score, score
from lm_eval_latentref.latent.selection import check_ids, find_markers, find_stop, make_kind
from lm_eval_latentref.latent.thoughts import Context, References, Thinking, Thoughts
from lm_eval_latentref.latent.torch_seams import by_onednn
from lm_eval_latentref.latent.transformers_seams import fused_gelu, packed_heads

MAX_COLUMNS_ON_CPU = 2048
"""The maximum of rows times columns of contexts that are thought about together on a CPU.

On a CPU a larger batch saves no time per row, but the references' caches and the activations need
more memory. On a GPU the time of a thought hardly depends on the number of rows.
"""


class NonFiniteThoughtError(LatentRefError):
    """A thought or log-likelihood is infinite or nan.

    `row` is its row in the batch; `reason` is the message without the row.
    """

    def __init__(self, row: int, reason: str) -> None:
        super().__init__(f"row {row}: {reason}")
        self.row, self.reason = row, reason


class TokenReasoner:
    """A backbone, its references and the options of thinking.

    Args:
        loaded: the models and the tokenizer.
        config: the options of thinking and refinement.
        max_length: the maximum number of columns that the backbone reads; None: the limit in its
            configuration.

    Raises:
        LatentRefError: the models do not fit together, or cannot think as `config` requires.
    """

    def __init__(
        self, loaded: LoadedSet, config: RefinementConfig, *, max_length: int | None = None
    ) -> None:
        self.loaded, self.tokenizer = loaded, loaded.tokenizer
        self.backbone = _network(loaded.backbone)
        self.config = config = config.for_width(self.backbone.hidden_size)
        self.references: References | None = None
        if config.searches and loaded.strong and loaded.weak:
            self.references = References(
                _network(loaded.strong, self.backbone), _network(loaded.weak, self.backbone)
            )
        for member, network in zip((loaded.strong, loaded.weak), self.networks()[1:], strict=False):
            if (size := network.hidden_size) != self.backbone.hidden_size:
                raise LatentRefError(
                    f"{name_of(member)} has embeddings of width {size}, but the backbone's have "
                    f"width {self.backbone.hidden_size}; give references of the same width, which "
                    "can read the backbone's thoughts"
                )
        files = loaded.backbone.thought_files
        self.kind = make_kind(loaded.tokenizer, self.backbone, config, files)
        self.markers = find_markers(loaded.tokenizer, config, files)
        self.stop = find_stop(config, self.markers, files)
        check_ids(self.markers, self.backbone, name_of(loaded.backbone))
        self.protocol = protocol_named(files.protocol or "coconut")
        if config.thought_dropout:
            check_droppable(self.backbone, name_of(loaded.backbone))
        self._max_length = max_length
        self.trunks = Trunks(self.networks())
        for member in (loaded.backbone, loaded.strong, loaded.weak):
            if member is not None:
                check_length(member.model.config, self.max_length, name_of(member))
                check_table(member.model, self.max_length, name_of(member))
        names = ("backbone", "strong", "weak")
        self.accounting = Accounting(dict(zip(names, self.networks(), strict=False)))

    @property
    def max_length(self) -> int | None:
        """The maximum number of columns: context, markers, thoughts and text; None: no limit."""
        text_config = self.backbone.causal_lm.config.get_text_config()
        return self._max_length or getattr(text_config, "max_position_embeddings", None)

    @property
    def trained_protocol(self) -> str | None:
        """The name of the protocol that the backbone was trained on; None if it is unknown."""
        has_tokens = self.markers is not None and self.kind.has_marker_tokens
        return self.loaded.backbone.thought_files.protocol or ("coconut" if has_tokens else None)

    @property
    def num_extra_columns(self) -> int:
        """The number of columns between context and continuation: markers and thoughts."""
        markers = self.markers
        num_markers = len(markers.opening) + len(markers.closing) if markers else 0
        return self.config.latent_steps + num_markers

    @property
    def thinks(self) -> bool:
        """Whether there are thoughts or markers; if not, this is plain language modelling."""
        return self.num_extra_columns > 0

    def think(self, contexts: Sequence[Tokens]) -> Thoughts:
        """The thoughts about each context (token ids without markers); needs `stop` to be None."""
        assert self.stop is None, "rows may have different numbers of thoughts"
        ((_, thoughts),) = self.think_in_groups(contexts)
        return thoughts

    def think_in_groups(
        self, contexts: Sequence[Tokens], samples: Sequence[int] | None = None
    ) -> list[Group]:
        """Think about each context, once if the same context occurs several times.

        Args:
            contexts: token ids without markers.
            samples: the sample number of each context, if thoughts depend on random numbers;
                default: 0 for all. Different samples of a context have different thoughts, but the
                context is read once.

        Returns:
            One group for each number of thoughts: indices into `contexts`, and their thoughts.

        Raises:
            NonFiniteThoughtError: a thought overflows.
        """
        numbers = samples if samples is not None and self.config.draws else [0] * len(contexts)
        pairs = list(zip(contexts, numbers, strict=True))
        rows = {pair: row for row, pair in enumerate(dict.fromkeys(pairs))}
        unique = list(dict.fromkeys(context for context, _ in rows))
        accounting, trunk = self.accounting, self.trunks.of(unique)
        num_shared = trunk.num_shared(unique, self.backbone) if trunk else 0
        whole = Context.pad(unique, device=self.backbone.device, trunk=trunk)
        # On a CPU parts are small; see MAX_COLUMNS_ON_CPU.
        on_cpu = self.backbone.device.type == "cpu"
        parts = whole.in_parts(MAX_COLUMNS_ON_CPU) if on_cpu else [whole]
        thinking = accounting.thinking(whole.num_shared)
        with torch.no_grad(), accounting.working(), thinking:
            groups = think_about(self._begun(unique, parts), list(rows), self.config, self.stop)
            # Counted after the work, because a batch that runs out of memory is repeated.
            accounting.count(
                tokens_encoded=sum(map(len, unique)),
                tokens_shared=num_shared,
                padding_columns=sum(part.num_padding(self.backbone) for part in parts),
                contexts_thought_about=len(rows),
                thought_steps=sum(len(rows) * thoughts.num_thoughts for rows, thoughts in groups),
            )
            groups = expanded(groups, [rows[pair] for pair in pairs])
        for members, thoughts in groups:
            self._check_finite(members, thoughts)
        return groups

    def _begun(
        self, contexts: Sequence[Tokens], parts: Sequence[Context]
    ) -> Iterator[tuple[Sequence[Tokens], Thinking]]:
        """The contexts of each part, with a `Thinking` about it."""
        start = 0
        for part in parts:
            stop = start + len(part.ids_BC)
            yield contexts[start:stop], self._thinking(part)
            start = stop

    def _thinking(self, context: Context) -> Thinking:
        return Thinking(
            context,
            backbone=self.backbone,
            references=self.references if self.config.searches else None,
            markers=self.markers,
            kind=self.kind,
            stops_early=self.stop is not None,
        )

    def score(
        self,
        contexts: Sequence[Tokens],
        continuations: Sequence[Sequence[Tokens]],
        *,
        max_rows: int,
        record: Callable[[Sequence[int], int], None] | None = None,
    ) -> list[list[Score]]:
        """Log-likelihoods of the continuations of each context; each context is thought about once.

        Args:
            contexts: token ids without markers.
            continuations: for each context, the token ids of its continuations.
            max_rows: the maximum number of rows in a forward.
            record: called for each group of contexts with their indices and their number of
                thoughts.

        Raises:
            NonFiniteThoughtError: a thought or a log-likelihood is not finite.
        """
        with torch.no_grad(), self.accounting.working():
            scores: list[list[Score]] = [[] for _ in contexts]
            for rows, thoughts in self.think_in_groups(contexts):
                if record is not None:
                    record(rows, thoughts.num_thoughts)
                group_continuations = [continuations[row] for row in rows]
                group_scores = score(thoughts, group_continuations, max_rows=max_rows)
                for row, results in zip(rows, group_scores, strict=True):
                    scores[row] = results
        for row, results in enumerate(scores):
            if not all(abs(result.log_likelihood) < float("inf") for result in results):
                raise NonFiniteThoughtError(
                    row, f"a log-likelihood is not finite; {self._remedy()}"
                )
        return scores

    def generation_inputs(self, contexts: Sequence[Tokens], thoughts: Thoughts) -> dict[str, Any]:
        """Arguments with which transformers' `generate` continues after `thoughts` on `contexts`.

        `input_ids` (B, K) has an id for every column; see `inputs_after`.
        """
        return inputs_after(contexts, thoughts, self.backbone, self.markers)

    @contextmanager
    def checking_states(self, rows: Sequence[int]) -> Iterator[None]:
        """Raise NonFiniteThoughtError if a hidden state in this block, which generates, overflows.

        Args:
            rows: the numbers of the rows in the batch, for the message.
        """
        states = self.backbone.watching_states()
        with states as finite, packed_heads(), fused_gelu(), by_onednn():
            yield
        all_finite = torch.stack(finite).all(0).tolist() if finite else [True] * len(rows)
        for row, is_finite in zip(rows, all_finite, strict=True):
            if not is_finite:
                raise NonFiniteThoughtError(
                    row, f"a hidden state after the thoughts is not finite; {self._remedy()}"
                )

    def count_generated(self, new_ids: Sequence[Sequence[int]]) -> None:
        """Count generated tokens; `new_ids` has the ids of each row, padding and EOS included."""
        not_text = {self.tokenizer.eos_token_id, padding_id(self.tokenizer)}
        num_tokens = sum(token not in not_text for row in new_ids for token in row)
        self.accounting.count(tokens_generated=num_tokens)

    def describe(self) -> str:
        """One line with the models and settings of this run."""
        return describe(
            self.loaded, self.config, self.networks(), has_markers=self.markers is not None
        )

    def settings(self) -> dict[str, Any]:
        """Everything that determines the answers: the refinement and each checkpoint's identity."""
        return settings_of(
            self.loaded, self.config, self.backbone, has_markers=self.markers is not None
        )

    def networks(self) -> list[Network]:
        """The networks in use: the backbone, then strong and weak if the search runs."""
        references = self.references
        return [self.backbone, *([references.strong, references.weak] if references else [])]

    def _check_finite(self, rows: Sequence[int], thoughts: Thoughts) -> None:
        if thoughts.finite_BT3.all():
            return
        row, step, part = (~thoughts.finite_BT3).nonzero()[0].tolist()
        names = ("the backbone's hidden state", "a reference's hidden state", "the refined thought")
        raise NonFiniteThoughtError(
            rows[row],
            f"thought {step + 1} is not finite: {names[part]} overflowed; {self._remedy()}",
        )

    def _remedy(self) -> str:
        advice = []
        if self.config.searches:
            advice.append(f"lower search_step_size={self.config.search_step_size:g}")
        if self.backbone.dtype != torch.float32:
            advice.append(f"use dtype=float32 in place of {dtype_name(self.backbone)}")
        return " or ".join(advice) or "check the checkpoint's weights"


def _network(loaded: LoadedModel, lender: Network | None = None) -> Network:
    return Network(
        loaded.model, adapter=loaded.adapter, lender=lender, borrowed_ids=loaded.borrowed_ids
    )


def padding_id(tokenizer: Any) -> int | None:
    """The tokenizer's padding id; without one, its EOS id."""
    pad_id = tokenizer.pad_token_id
    return pad_id if pad_id is not None else tokenizer.eos_token_id

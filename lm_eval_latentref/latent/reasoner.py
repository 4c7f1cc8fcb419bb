"""Latent reasoning in Python, without lm-eval: think about questions, answer them.

    reasoner = Reasoner(loaded, RefinementConfig(latent_steps=6, memory_rate=0.3))
    answer = reasoner.ask("Is Tom a lempus or a gorpus?")
    answer.text, answer.answer, answer.thoughts

`Reasoner` works on batches of token ids; the lm-eval class is built on it. `ask` takes one question
as text.

Shape suffixes: B batch, K columns, P pending columns, T thoughts, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.latent.accounting import Accounting
from lm_eval_latentref.latent.batching import Tokens, give_back_memory
from lm_eval_latentref.latent.config import RefinementConfig
from lm_eval_latentref.latent.continuing import inputs_after
from lm_eval_latentref.latent.decoding import check_decoding
from lm_eval_latentref.latent.description import described, dtype_name, name_of, settings_of
from lm_eval_latentref.latent.dropout import check_droppable
from lm_eval_latentref.latent.groups import Group, for_all, think_about
from lm_eval_latentref.latent.lengths import check_length, check_table
from lm_eval_latentref.latent.loaded import LoadedModel, LoadedSet
from lm_eval_latentref.latent.networks import Network
from lm_eval_latentref.latent.prefixes import Trunks
from lm_eval_latentref.latent.protocol import protocol_named
from lm_eval_latentref.latent.scoring import Score, score
from lm_eval_latentref.latent.selection import check_ids, find_markers, find_stop, make_kind
from lm_eval_latentref.latent.thoughts import (
    Context,
    References,
    Thinking,
    Thoughts,
)

MAX_COLUMNS_ON_CPU = 2048
"""The most rows times columns of contexts that are thought about together on a CPU.

On a CPU a larger batch saves no time per row, while the references' caches and the activations take
up memory. On a GPU the time of a thought hardly depends on the number of rows.
"""


MAX_NEW_TOKENS = 256
"""The most tokens that `ask` writes by default."""


class NonFiniteThoughtError(LatentRefError):
    """A thought is infinite or nan; `row` is its row in the batch, `reason` the message."""

    def __init__(self, row: int, reason: str) -> None:
        super().__init__(f"row {row}: {reason}")
        self.row, self.reason = row, reason


@dataclass(frozen=True)
class Answer:
    """A model's answer to one question."""

    text: str
    """All text after the thoughts."""
    answer: str
    """The answer in it, as the checkpoint's protocol reads it."""
    thoughts: Tensor
    """z_1..z_T, shape (T, D), on the CPU."""


class Reasoner:
    """A backbone, its references and the refinement between them, ready to think.

    Args:
        loaded: the models and the tokenizer.
        config: the number of thoughts and how each is refined.
        max_length: the most columns the backbone reads; None: the limit in its config.
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
                    f"{name_of(member)} embeds tokens as {size} numbers and the backbone as "
                    f"{self.backbone.hidden_size}; references must read the backbone's thoughts"
                )
        files = loaded.backbone.thought_files
        self.kind = make_kind(loaded.tokenizer, self.backbone, config, files)
        self.markers = find_markers(loaded.tokenizer, config, files)
        self.stop = find_stop(config, self.markers)
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
        """The most columns the backbone reads: context, markers, thoughts and text."""
        text_config = self.backbone.causal_lm.config.get_text_config()
        return self._max_length or getattr(text_config, "max_position_embeddings", None)

    @property
    def trained_protocol(self) -> str | None:
        """The name of the protocol that the backbone was trained on; None if that is not known."""
        has_tokens = self.markers is not None and self.kind.has_marker_tokens
        return self.loaded.backbone.thought_files.protocol or ("coconut" if has_tokens else None)

    @property
    def num_extra_columns(self) -> int:
        """The number of columns between context and continuation: markers and thoughts."""
        markers = self.markers
        around = len(markers.opening) + len(markers.closing) if markers else 0
        return self.config.latent_steps + around

    @property
    def thinks(self) -> bool:
        """False for plain language modelling, without thoughts and markers."""
        return self.num_extra_columns > 0

    def think(self, contexts: Sequence[Tokens]) -> Thoughts:
        """`think_in_groups` where every row thinks as many thoughts."""
        assert self.stop is None, "rows may stop at different numbers of thoughts"
        ((_, thoughts),) = self.think_in_groups(contexts)
        return thoughts

    def think_in_groups(
        self, contexts: Sequence[Tokens], samples: Sequence[int] | None = None
    ) -> list[Group]:
        """Think about each context (token ids without markers); equal contexts share their work.

        Args:
            samples: the number of each one's sample, where thoughts are drawn at random; default:
                0 for all. Samples of one context differ, and it is read once for all of them.

        Returns a group for each number of thoughts: indices of contexts, and their thoughts. Raises
        NonFiniteThoughtError if a thought overflows.
        """
        drawn = samples if samples is not None and self.config.draws else [0] * len(contexts)
        asked = list(zip(contexts, drawn, strict=True))
        rows = {sample: row for row, sample in enumerate(dict.fromkeys(asked))}
        unique = list(dict.fromkeys(context for context, _ in rows))
        accounting, trunk = self.accounting, self.trunks.of(unique)
        num_shared = trunk.num_shared(unique, self.backbone) if trunk else 0
        whole = Context.pad(unique, device=self.backbone.device, trunk=trunk)
        thinking = accounting.thinking(whole.num_shared)
        with torch.no_grad(), accounting.working(), thinking:
            groups = think_about(self._parts(unique, whole), list(rows), self.config, self.stop)
            # Counted after the work, because a batch that runs out of memory is repeated.
            accounting.count(
                tokens_encoded=sum(map(len, unique)),
                tokens_shared=num_shared,
                contexts_thought_about=len(rows),
                thought_steps=sum(len(rows) * thoughts.num_thoughts for rows, thoughts in groups),
            )
            groups = for_all(groups, [rows[sample] for sample in asked])
        for members, thoughts in groups:
            self._check_finite(members, thoughts)
        return groups

    def _parts(
        self, contexts: Sequence[Tokens], whole: Context
    ) -> Iterator[tuple[Sequence[Tokens], Thinking]]:
        """`contexts` in batches that fit the caches of a CPU, each with what reads it."""
        on_cpu = self.backbone.device.type == "cpu"
        parts = whole.in_parts(MAX_COLUMNS_ON_CPU) if on_cpu else [whole]
        start = 0
        for part in parts:
            if len(parts) > 1:
                give_back_memory()
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
        note: Callable[[Sequence[int], int], None] | None = None,
    ) -> list[list[Score]]:
        """Log-likelihoods of the continuations of each context; each context is thought about once.

        Args:
            max_rows: the most rows of a forward pass.
            note: called with the numbers of contexts and how many thoughts each of them took.
        """
        with torch.no_grad(), self.accounting.working():
            scores: list[list[Score]] = [[] for _ in contexts]
            for rows, thoughts in self.think_in_groups(contexts):
                if note is not None:
                    note(rows, thoughts.num_thoughts)
                asked = [continuations[row] for row in rows]
                of_group = score(thoughts, asked, max_rows=max_rows)
                for row, results in zip(rows, of_group, strict=True):
                    scores[row] = results
        for row, results in enumerate(scores):
            if not all(abs(result.log_likelihood) < float("inf") for result in results):
                raise NonFiniteThoughtError(
                    row, f"a log-likelihood is not finite; {self._remedy()}"
                )
        return scores

    def generation_inputs(self, contexts: Sequence[Tokens], thoughts: Thoughts) -> dict[str, Any]:
        """Arguments with which transformers' `generate` continues after `thoughts` on `contexts`.

        `input_ids` (B, K) has an id for every column: the context's last token in place of each
        thought and its first in place of padding, so that logits processors see no token that is
        not in the context.
        """
        return inputs_after(contexts, thoughts, self.backbone, self.markers)

    def ask(self, question: str, *, max_new_tokens: int | None = None) -> Answer:
        """Think about one question, asked as the checkpoint's protocol does, and write the answer.

        Args:
            max_new_tokens: None: 256, or as many as the model has room for if that is less.
        """
        return self.ask_all([question], max_new_tokens=max_new_tokens)[0]

    def ask_all(
        self, questions: Sequence[str], *, max_new_tokens: int | None = None
    ) -> list[Answer]:
        """`ask` for a batch of questions."""
        for question in questions:
            _check_text(question)
        protocol = self.protocol
        contexts = [
            tuple(
                self.tokenizer.encode(
                    protocol.prompt(question), add_special_tokens=protocol.adds_special_tokens
                )
            )
            for question in questions
        ]
        if max_new_tokens is None:
            rooms = [self.room(context) for context in contexts]
            max_new_tokens = max(
                1, min([MAX_NEW_TOKENS, *(room for room in rooms if room is not None)])
            )
        return self.answer(contexts, max_new_tokens=max_new_tokens)

    def room(self, context: Tokens) -> int | None:
        """How many tokens can be written after `context` and its thoughts; None: no limit."""
        if self.max_length is None:
            return None
        # The last token is written but never read, so it takes no column.
        return self.max_length - len(context) - self.num_extra_columns + 1

    def answer(self, contexts: Sequence[Tokens], *, max_new_tokens: int) -> list[Answer]:
        """Think about contexts (token ids) and write an answer to each, greedily."""
        check_decoding(self.backbone.causal_lm.generation_config, thinks=self.thinks)
        for context in contexts:
            self.check_room(context, max_new_tokens)
        answers: dict[int, Answer] = {}
        with torch.no_grad(), self.accounting.working():
            for rows, thoughts in self.think_in_groups(contexts):
                new_ids = self._write(
                    [contexts[row] for row in rows], thoughts, rows, max_new_tokens
                )
                texts = self.tokenizer.batch_decode(new_ids, skip_special_tokens=True)
                thoughts_BTD = thoughts.thoughts_BTD.cpu()
                for row, text, thoughts_TD in zip(rows, texts, thoughts_BTD, strict=True):
                    answers[row] = Answer(text, self.protocol.extract(text), thoughts_TD)
        return [answers[row] for row in range(len(contexts))]

    def _write(
        self, contexts: Sequence[Tokens], thoughts: Thoughts, rows: Sequence[int], max_new: int
    ) -> Tensor:
        """New token ids (B, L) of a group of rows, written greedily."""
        inputs = self.generation_inputs(contexts, thoughts)
        with self.checking_text(rows):
            output_BK = self.backbone.causal_lm.generate(
                **inputs,
                max_new_tokens=max_new,
                do_sample=False,
                num_beams=1,
                pad_token_id=_pad_id(self.tokenizer),
            )
        new_BL = output_BK[:, inputs["input_ids"].shape[1] :]
        self.count_generated(new_BL.tolist())
        return new_BL

    @contextmanager
    def checking_text(self, rows: Sequence[int]) -> Iterator[None]:
        """Raise NonFiniteThoughtError if a hidden state decoded in this block is not finite.

        `rows` are the numbers of the decoded rows, for the message.
        """
        with self.backbone.watching_states() as finite:
            yield
        all_finite = torch.stack(finite).all(0).tolist() if finite else [True] * len(rows)
        for row, is_finite in zip(rows, all_finite, strict=True):
            if not is_finite:
                raise NonFiniteThoughtError(
                    row, f"a hidden state after the thoughts is not finite; {self._remedy()}"
                )

    def count_generated(self, new_ids: Sequence[Sequence[int]]) -> None:
        """Count the tokens that `generate` wrote; `new_ids` has a list for each row, padded."""
        not_text = {self.tokenizer.eos_token_id, _pad_id(self.tokenizer)}
        num_tokens = sum(token not in not_text for row in new_ids for token in row)
        self.accounting.count(tokens_generated=num_tokens)

    def check_room(self, context: Tokens, max_new_tokens: int) -> None:
        """Raise LatentRefError if the model has no room for so many new tokens."""
        if max_new_tokens < 1:
            raise LatentRefError(f"max_new_tokens={max_new_tokens}: it must be an integer >= 1")
        room = self.room(context)
        if room is not None and max_new_tokens > room:
            raise LatentRefError(
                f"the question takes {len(context)} tokens, thoughts and markers "
                f"{self.num_extra_columns} and max_new_tokens={max_new_tokens}, more than the "
                f"model's {self.max_length}; shorten the question or lower max_new_tokens"
            )

    def describe(self) -> str:
        """One line with the models and settings of this run."""
        return described(
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
        who = ("the backbone's hidden state", "a reference's hidden state", "the refined thought")
        raise NonFiniteThoughtError(
            rows[row], f"thought {step + 1} is not finite: {who[part]} overflowed; {self._remedy()}"
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


def _pad_id(tokenizer: Any) -> int | None:
    pad_id = tokenizer.pad_token_id
    return pad_id if pad_id is not None else tokenizer.eos_token_id


def _check_text(question: str) -> None:
    if not question.strip():
        raise LatentRefError("the question is empty; give some text")
    try:
        question.encode()
    except UnicodeEncodeError as error:
        raise LatentRefError(
            f"the question holds {question[error.start]!a}, which is no character; give UTF-8 text"
        ) from error

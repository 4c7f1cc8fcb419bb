"""What a batch must cost at least: operations and bytes of each phase, counted from shapes.

    meter = Meter(reasoner)
    with meter.batch(contexts):
        ...                       # think about `contexts`, then decode
    meter.phases["think"].num_bytes

Operations: two for each weight and token, and attention's two products over the columns a token
sees. Bytes: the weights once a forward, and the keys and values once for each forward that goes on
from them. Padding, activations, norms and the second reading of anything are left out, so the
fractions found with these counts are lower bounds. Knows no clock.

Shape: a context of n columns has n (n + 1) / 2 pairs of a column and one that it sees.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from lm_eval_latentref.latent.batching import Tokens
from lm_eval_latentref.latent.networks import Network
from lm_eval_latentref.latent.reasoner import Reasoner

PHASES = ("encode", "think", "decode")


@dataclass
class Work:
    """What is to be done in one phase."""

    forwards: int = 0
    flops: float = 0.0
    num_bytes: float = 0.0


@dataclass(frozen=True)
class Costs:
    """What one network takes for a token, a forward and a column of its cache."""

    weights: int
    """Elements of the decoder's matrices: all layers, without the input embedding."""

    head_weights: int
    """Elements of the matrix that makes logits."""

    attention_width: int
    """Heads times their size, summed over layers."""

    cache_width: int
    """Elements of keys and values for one column, summed over layers."""

    bytes_per_element: int

    @classmethod
    def of(cls, network: Network, adapter: str | None) -> Costs:
        """The costs of one network, its adapter included and the others' left out."""
        causal_lm = network.causal_lm
        config = causal_lm.config.get_text_config()
        heads = config.num_attention_heads
        head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
        key_heads = getattr(config, "num_key_value_heads", None) or heads
        embedding = causal_lm.get_input_embeddings().weight
        named = causal_lm.base_model.named_parameters()
        weights = sum(
            weight.numel()
            for name, weight in named
            if weight.dim() > 1 and weight is not embedding and _takes_part(name, adapter)
        )
        return cls(
            weights=weights,
            head_weights=causal_lm.get_output_embeddings().weight.numel(),
            attention_width=config.num_hidden_layers * heads * head_size,
            cache_width=2 * config.num_hidden_layers * key_heads * head_size,
            bytes_per_element=embedding.element_size(),
        )

    def work(self, *, num_new: int, num_seen: float, num_past: int, num_logits: int) -> Work:
        """One forward.

        Args:
            num_new: new columns, over all rows.
            num_seen: pairs of a new column and one it sees.
            num_past: columns in the cache, over all rows.
            num_logits: rows for which there are logits.
        """
        read = self.weights + self.cache_width * num_past + (num_logits > 0) * self.head_weights
        matrices = self.weights * num_new + self.head_weights * num_logits
        return Work(
            forwards=1,
            flops=2.0 * matrices + 4.0 * self.attention_width * num_seen,
            num_bytes=float(read * self.bytes_per_element),
        )


class Meter:
    """Adds up the work of every forward of a reasoner's models, by phase."""

    def __init__(self, reasoner: Reasoner) -> None:
        self.phases = {name: Work() for name in PHASES}
        self._lengths: list[int] = []
        self._longest = 0
        self._after_encoding = "think"
        loaded = reasoner.loaded
        members = [loaded.backbone, loaded.strong, loaded.weak]
        for network, member in zip(reasoner.networks(), members, strict=False):
            assert member is not None
            network.before_forward(self._listener(Costs.of(network, member.adapter)))

    @contextmanager
    def batch(self, contexts: Sequence[Tokens]) -> Iterator[None]:
        """Forwards while this is open are those of `contexts`, all different."""
        self._lengths = [len(context) for context in contexts]
        self._longest = max(self._lengths)
        self._after_encoding = "think"
        yield
        self._lengths = []

    def decoding(self) -> None:
        """Later forwards of this batch decode."""
        self._after_encoding = "decode"

    def _listener(self, costs: Costs) -> Any:
        def heard(num_columns: int, past: int) -> None:
            if not self._lengths:
                return
            num_rows = len(self._lengths)
            num_new = num_columns // num_rows
            if past == 0:
                self._add("encode", self._encoding(costs, num_new))
                return
            columns = [past - self._longest + length for length in self._lengths]
            decoding = self._after_encoding == "decode"
            work = costs.work(
                num_new=num_new * num_rows,
                num_seen=sum(n * num_new + num_new * (num_new + 1) / 2 for n in columns),
                num_past=sum(columns),
                num_logits=num_rows if decoding else 0,
            )
            self._add(self._after_encoding, work)

        return heard

    def _encoding(self, costs: Costs, num_columns: int) -> Work:
        extra = num_columns - self._longest  # a reference reads the first thought as well
        columns = [length + extra for length in self._lengths]
        pairs = sum(n * (n + 1) / 2 for n in columns)
        return costs.work(num_new=sum(columns), num_seen=pairs, num_past=0, num_logits=0)

    def _add(self, phase: str, work: Work) -> None:
        total = self.phases[phase]
        total.forwards += work.forwards
        total.flops += work.flops
        total.num_bytes += work.num_bytes


def _takes_part(name: str, adapter: str | None) -> bool:
    return ".lora_" not in name or (adapter is not None and f".{adapter}." in name)

"""The package's benchmark tasks under the prompt protocol of any family.

    lm_eval --tasks latentref_gsm8k --metadata '{"protocol": "codi"}'

A task file names this class. Documents stay as they are, and so do their hashes; the protocol
renders them on the way to the model and judges what it writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import comb
from typing import Any

from lm_eval.api.task import ConfigurableTask

from lm_eval_latentref.latent.protocol import protocol_named

protocols_in_use: dict[str, str] = {}
"""The protocol of each task that was made last in this process, by the task's name."""


class ProtocolTask(ConfigurableTask):
    """A task whose documents have the fields `prompt` and `answer_text` in Coconut's format."""

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        own = {name: value for name, value in (config or {}).items() if name != "class"}
        self.protocol = protocol_named((own.get("metadata") or {}).get("protocol", "coconut"))
        protocols_in_use[str(own.get("task"))] = self.protocol.name
        super().__init__(config=own)

    def doc_to_text(self, doc: Mapping[str, Any], doc_to_text: Any = None) -> str:
        """The context: the question, asked as the protocol does."""
        return self.protocol.prompt(doc["prompt"].removesuffix("\n"))

    def doc_to_choice(self, doc: Mapping[str, Any], doc_to_choice: Any = None) -> list[str]:
        """The candidate answers as the protocol writes them."""
        return [self._written(choice) for choice in doc["choices"]]

    def doc_to_target(self, doc: Mapping[str, Any], doc_to_target: Any = None) -> Any:
        """The number of the right choice, or the right answer as the protocol writes it."""
        if self.OUTPUT_TYPE == "multiple_choice":
            return doc["gold"]
        return self._written(doc["answer_text"])

    def process_results(self, doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, Any]:
        """lm-eval's, for choices; for texts 1 if the answer is right, or pass@k of several."""
        if self.OUTPUT_TYPE == "multiple_choice":
            return super().process_results(doc, results)
        gold = self.protocol.gold_of(doc["answer_text"])
        if isinstance(results[0], str):
            return {"exact_match": float(self.protocol.is_right(results[0], gold))}
        right = [self.protocol.is_right(text, gold) for text in results[0]]
        names = [metric["metric"] for metric in self.config.metric_list]
        return {name: pass_at(int(name.removeprefix("pass@")), right) for name in names}

    def _written(self, coconut_text: str) -> str:
        return self.protocol.answer_text(self.protocol.gold_of(coconut_text))


def pass_at(k: int, right: Sequence[bool]) -> float:
    """Probability that k of the samples, drawn without replacement, contain a right one.

    This is the unbiased estimate of Chen et al. (arXiv:2107.03374).
    """
    num, num_right = len(right), sum(right)
    assert num >= k, f"pass@{k} needs {k} samples, not {num}"
    return 1.0 - comb(num - num_right, k) / comb(num, k)

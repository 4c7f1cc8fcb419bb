"""The classes of our benchmark tasks, which record their data and can use any family's protocol.

    lm_eval --tasks latentref_gsm8k --metadata '{"protocol": "codi"}'

The task files name these classes. The protocol formats the prompt and extracts the answer; it
changes neither the documents nor their hashes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import comb
from typing import Any

from lm_eval.api.task import ConfigurableTask

from lm_eval_latentref.benchmarks.documents import Splits, of_evaluations
from lm_eval_latentref.latent.protocol import protocol_named

protocols_in_use: dict[str, str] = {}
"""For each task's name, the protocol of the latest task in this process."""


class RecordedTask(ConfigurableTask):
    """A task whose data is in the results of each of its evaluations, whatever thread built it."""

    data: Splits

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        own = {name: value for name, value in (config or {}).items() if name != "class"}
        super().__init__(config=own)

    def download(self, *args: Any, **kwargs: Any) -> None:
        """Load the documents."""
        with of_evaluations.recording() as self.data:
            super().download(*args, **kwargs)

    def apply_filters(self) -> Any:
        """Filter the model's answers, which lm-eval does once an evaluation."""
        of_evaluations.use(self.data)
        return super().apply_filters()


class ProtocolTask(RecordedTask):
    """A task whose documents have the fields `prompt` and `answer_text` in Coconut's protocol."""

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        own = dict(config or {})
        self.protocol = protocol_named((own.get("metadata") or {}).get("protocol", "coconut"))
        protocols_in_use[str(own.get("task"))] = self.protocol.name
        if own.get("filter_list"):
            own["filter_list"] = [self._reading(pipeline) for pipeline in own["filter_list"]]
        super().__init__(config=own)

    def doc_to_text(self, doc: Mapping[str, Any], doc_to_text: Any = None) -> str:
        """The context: the question in the protocol's format."""
        return self.protocol.prompt(doc["prompt"].removesuffix("\n"))

    def doc_to_choice(self, doc: Mapping[str, Any], doc_to_choice: Any = None) -> list[str]:
        """The candidate answers in the protocol's format."""
        return [self._written(choice) for choice in doc["choices"]]

    def doc_to_target(self, doc: Mapping[str, Any], doc_to_target: Any = None) -> Any:
        """The number of the right choice, or the right answer in the protocol's format."""
        if self.OUTPUT_TYPE == "multiple_choice":
            return doc["gold"]
        return self._written(doc["answer_text"])

    def process_results(self, doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, Any]:
        """A document's metrics: lm-eval's for choices, exact match or pass@k for texts."""
        if self.OUTPUT_TYPE == "multiple_choice":
            return super().process_results(doc, results)
        gold = self.protocol.gold_of(doc["answer_text"])
        if isinstance(results[0], str):
            return {"exact_match": float(self.protocol.is_right(results[0], gold))}
        right = [self.protocol.is_right(text, gold) for text in results[0]]
        names = [metric["metric"] for metric in self.config.metric_list]
        return {name: pass_at(int(name.removeprefix("pass@")), right) for name in names}

    def _reading(self, pipeline: Mapping[str, Any]) -> dict[str, Any]:
        """The filters of `pipeline`, which take the answer from where the protocol writes it."""
        filters = [
            {**each, "regex_pattern": self.protocol.answer_pattern}
            if each["function"] == "regex"
            else each
            for each in pipeline["filter"]
        ]
        return {**pipeline, "filter": filters}

    def _written(self, coconut_text: str) -> str:
        return self.protocol.answer_text(self.protocol.gold_of(coconut_text))


def pass_at(k: int, right: Sequence[bool]) -> float:
    """The probability that k samples, drawn without replacement, contain a right sample.

    This is the unbiased estimate of pass@k by Chen et al. (arXiv:2107.03374).

    Args:
        right: for each sample, whether it is right; at least k samples.
    """
    num, num_right = len(right), sum(right)
    assert num >= k, f"pass@{k} needs {k} samples, not {num}"
    return 1.0 - comb(num - num_right, k) / comb(num, k)

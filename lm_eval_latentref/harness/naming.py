"""Which document a context belongs to, so that errors can name the document.

names = DocumentNames()
names.remember(requests)
with names.naming(contexts):
    ...              # an error about row 2 names the document of the third context
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.latent.reasoner import NonFiniteThoughtError


class DocumentNames:
    """Task and number of the document that each context was made from."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def remember(self, requests: Sequence[Any]) -> None:
        """Record the documents of lm-eval's requests, whose first argument is the context."""
        for request in requests:
            name = f"{request.task_name} document {request.doc_id}"
            self._names.setdefault(request.args[0], name)

    def name_of(self, context: str) -> str:
        """Task and number of the document that `context` was made from."""
        return self._names.get(context, "a document")

    @contextmanager
    def naming(self, contexts: Sequence[str]) -> Iterator[None]:
        """Turn an error about a row of `contexts` into one that names the row's document."""
        try:
            yield
        except NonFiniteThoughtError as error:
            text = contexts[error.row]
            raise LatentRefError(
                f"{self.name_of(text)} ({text[:60]!r}...): {error.reason}"
            ) from error

    @contextmanager
    def naming_mistakes(self, context: str) -> Iterator[None]:
        """Put the name of the document of `context` before every LatentRefError."""
        try:
            yield
        except LatentRefError as error:
            raise LatentRefError(f"{self.name_of(context)}: {error}") from error

"""Records the document of each context, so that errors can name the document.

names = DocumentNames()
names.remember(requests)
with names.naming_rows(contexts):
    ...              # an error about row 2 names the document of the third context
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.latent.token_reasoner import NonFiniteThoughtError


class DocumentNames:
    """The task and document number of each context."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def remember(self, requests: Sequence[Any]) -> None:
        """Record the documents of lm-eval's requests, whose first argument is the context."""
        for request in requests:
            name = f"{request.task_name} document {request.doc_id}"
            self._names.setdefault(request.args[0], name)

    def name_of(self, context: str) -> str:
        """The task and document number of `context`; "a document" if it is unknown."""
        return self._names.get(context, "a document")

    @contextmanager
    def naming_rows(self, contexts: Sequence[str]) -> Iterator[None]:
        """Turn a NonFiniteThoughtError into an error that names the document of its row."""
        try:
            yield
        except NonFiniteThoughtError as error:
            text = contexts[error.row]
            raise LatentRefError(
                f"{self.name_of(text)} ({text[:60]!r}...): {error.reason}"
            ) from error

    @contextmanager
    def naming_document(self, context: str) -> Iterator[None]:
        """Begin the message of a LatentRefError in this block with the document of `context`."""
        try:
            yield
        except LatentRefError as error:
            raise LatentRefError(f"{self.name_of(context)}: {error}") from error

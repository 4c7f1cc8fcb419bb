"""Which document a context belongs to, so that what goes wrong is told with its name.

    names = DocumentNames()
    names.remember(requests)
    with names.telling(contexts):
        ...              # an error about row 2 becomes one about the third context's document

Deliberately knows nothing of how contexts are made or thought about.
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
        """Note the documents of lm-eval's requests, whose first argument is the context."""
        for request in requests:
            name = f"{request.task_name} document {request.doc_id}"
            self._names.setdefault(request.args[0], name)

    @contextmanager
    def telling(self, contexts: Sequence[str]) -> Iterator[None]:
        """Raise an error about a row of `contexts` as one about its document."""
        try:
            yield
        except NonFiniteThoughtError as error:
            text = contexts[error.row]
            name = self._names.get(text, "a document")
            raise LatentRefError(f"{name} ({text[:60]!r}...): {error.reason}") from error

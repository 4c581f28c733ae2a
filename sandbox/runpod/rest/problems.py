"""How the REST API refuses a call: RFC 9457, with the list `errors` for a body that is not valid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus

from starlette.responses import JSONResponse, Response


class ProblemError(Exception):
    """A call is refused. `detail` is one sentence, `errors` one entry for each invalid field."""

    def __init__(self, status: int, detail: str, errors: Sequence[str] = ()) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.errors = list(errors)

    def answer(self) -> Response:
        """Return the refusal as an answer."""
        return problem_answer(self.status, self.detail, errors=self.errors)


def problem_answer(
    status: int, detail: str, headers: Mapping[str, str] | None = None, *, errors: Sequence[str] = ()
) -> Response:
    """Make an answer of type `application/problem+json`."""
    body = {"title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    if errors:
        body["errors"] = list(errors)
    return JSONResponse(body, status, headers, media_type="application/problem+json")

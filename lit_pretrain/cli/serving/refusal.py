"""Refusal: errors in OpenAI's shape, so that its clients understand them."""

from typing import Any, Optional


class Refusal(Exception):
    """A request that gets no answer.

    Args:
        status: Of HTTP.
        message: What is wrong and what to do.
        param: The field that is wrong.
        code: One word for programs.
    """

    def __init__(self, status: int, message: str, *, param: Optional[str] = None, code: Optional[str] = None) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code

    def body(self) -> dict[str, Any]:
        """As it is sent."""
        kind = {401: "authentication_error", 404: "not_found_error"}.get(self.status)
        kind = kind or ("invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def of_validation(errors: list[Any]) -> Refusal:
    """The first thing wrong with a body, from pydantic's list."""
    # Of a field that may be of several kinds, what is wrong deepest within it says most.
    first = max(errors, key=lambda error: len(error["loc"]))
    place = [str(part) for part in first["loc"] if part != "body"]
    kind, message = first["type"], first["msg"].removeprefix("Value error, ")
    if kind == "json_invalid":
        return Refusal(400, f"the body is not JSON: {first.get('ctx', {}).get('error', message)}")
    if kind == "extra_forbidden":
        return Refusal(400, f"unknown field {place[-1]!r}", param=place[-1], code="unknown_parameter")
    if kind == "missing":
        return Refusal(400, f"the field {'.'.join(place) or 'body'} is missing", param=place[-1] if place else None)
    if kind == "value_error":
        return Refusal(400, message, param=message.split()[0], code="unsupported_parameter")
    return Refusal(400, f"{place[0] if place else 'body'}: {message}", param=place[0] if place else None, code="invalid_value")

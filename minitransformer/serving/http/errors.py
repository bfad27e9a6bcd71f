"""Errors as the OpenAI API words them: {"error": {"message", "type", "param", "code"}}."""

from starlette.requests import Request
from starlette.responses import JSONResponse


class ApiError(Exception):
    """What the client gets instead of an answer. `param` names the argument that was wrong."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.headers = status, headers
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body, self.status, self.headers)


async def api_error(request: Request, error: ApiError) -> JSONResponse:
    return error.response()


async def http_error(request: Request, error) -> JSONResponse:
    """Starlette's own errors: no such path, no such method."""
    message = f"{request.method} {request.url.path}: {error.detail}"
    return ApiError(error.status_code, message, headers=error.headers).response()


async def server_error(request: Request, error: Exception) -> JSONResponse:
    """A fault of ours. What it was stands in the server's log, not in the answer."""
    return ApiError(500, "the server failed to answer; its log says why", kind="server_error").response()

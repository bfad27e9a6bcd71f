"""What a request has brought so far, as its caller sees it."""

from dataclasses import dataclass

from minitransformer.serving.request import Request, Status


@dataclass(frozen=True)
class RequestOutput:
    """The state of one request after a step.

    text           the answer so far; ends before what stopped it
    new_text       what this step added to it (a token may bring none, or more than its own)
    token_ids      the answer so far, the token that stopped it included
    finished       whether this is the last output
    finish_reason  "stop", "length", "abort" or "error"; None before the end
    error          what went wrong, with "error"
    ttft_s         seconds from arrival to the first token
    tpot_s         seconds per token after it; None where there is but one
    cached_tokens  how many tokens of the prompt were found in the prefix cache
    stages         at the end: seconds spent "queued", in "prefill" and in "decode", and what else the
                   engine tells apart
    workers        of a pool of workers: who computed its "prefill" and its "decode"
    """

    request_id: str
    text: str
    new_text: str
    token_ids: list[int]
    finished: bool
    finish_reason: str | None
    num_prompt_tokens: int
    cached_tokens: int
    ttft_s: float | None
    tpot_s: float | None
    stages: dict[str, float]
    workers: dict[str, str]
    error: str | None

    @classmethod
    def of(cls, request: Request, text: str, new_text: str, finish_reason: str | None) -> "RequestOutput":
        return cls(
            request_id=request.id,
            text=text,
            new_text=new_text,
            token_ids=request.output_ids,
            finished=request.status is Status.FINISHED,
            finish_reason=finish_reason,
            num_prompt_tokens=len(request.prompt_ids),
            cached_tokens=request.cached_tokens or 0,
            ttft_s=request.ttft_s,
            tpot_s=request.tpot_s,
            stages=request.stages,
            workers=request.workers,
            error=request.error,
        )

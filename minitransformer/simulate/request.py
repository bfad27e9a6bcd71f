"""Requests without text: what the engine's scheduler and block manager read is all there.

Tokens are a `range`: its length is that of the text, and its numbers stand for the words. Texts of
different sessions use numbers far apart, so that only equal texts have equal names.
"""

from dataclasses import dataclass, field
from math import nan

from minitransformer.sampling import SamplingParams
from minitransformer.serving.request import Request
from minitransformer.simulate.workload import Load

APART = 2**32  # tokens between the texts of two sessions
GREEDY = SamplingParams()


@dataclass(eq=False, slots=True)
class Job:
    """One request as its user sees it, whichever workers work on it.

    text       the number that its text begins with
    done       tokens of the answer so far; they outlive the worker that produced them
    here       its request on the worker that serves it whole, or decodes it
    prefill    its request on the worker that computes its prompt, while one does
    *_s        when it arrived, when its prompt was first worked on, when its first token came, when its
               cache had arrived where it is decoded, and when its last token came
    """

    index: int
    prompt_tokens: int
    output_tokens: int
    text: int
    session: int
    arrival_s: float = nan
    done: int = 0
    here: "SimulatedRequest | None" = None
    prefill: "SimulatedRequest | None" = None
    started_s: float = nan
    first_token_s: float = nan
    decode_s: float = nan
    last_token_s: float = nan
    cached_tokens: int = 0
    preemptions: int = 0
    restarts: int = 0


@dataclass(eq=False)
class SimulatedRequest(Request):
    """A job's part on one worker: the whole of it, its prefill, or its decode.

    worker     where it is
    left       tokens that it still has to produce there
    owed       tokens of its prompt, as long as they are not all computed
    sent       tokens of its prompt that are on their way to where it is decoded, or were there before
    local_below  a decode worker computes fewer missing tokens than these itself
    cancelled  nobody wants the result of the step that it takes part in
    """

    job: Job | None = None
    worker: object = None
    left: int = field(init=False, default=0)
    owed: int = field(init=False, default=0)
    sent: int = 0
    local_below: int = 0
    cancelled: bool = False

    def __post_init__(self):
        self.tokens = self.prompt_ids  # a range does not change
        self.left, self.owed = self.max_new_tokens, len(self.prompt_ids)

    def produce(self, count: int = 1):
        """The next tokens of the answer, whatever they say."""
        self.tokens = range(self.tokens.start, self.tokens.stop + count)
        self.left -= count


class BlockNames:
    """Names of a request's full blocks: what the prefix cache finds texts by, without spelling them out.

    A block's name is that of its text and its place in it. Blocks of the system prompt, which all sessions
    begin with, have the same names in all of them.
    """

    def __init__(self, request: SimulatedRequest, block_size: int, system_tokens: int):
        self.request, self.block_size = request, block_size
        self.shared = system_tokens // block_size if request.job.session >= 0 else 0

    def __len__(self) -> int:
        return len(self.request.tokens) // self.block_size

    def __getitem__(self, block: int) -> int:
        if not 0 <= block < len(self):
            raise IndexError(f"block {block} of {len(self)}")
        return block if block < self.shared else self.request.tokens.start + block


def request_for(job: Job, new_tokens: int, worker, system_tokens: int = 0) -> SimulatedRequest:
    """A request for the next `new_tokens` of a job's answer; what has been said counts as its prompt."""
    known = range(job.text, job.text + job.prompt_tokens + job.done)
    request = SimulatedRequest(job.index, known, GREEDY, new_tokens, job.arrival_s, job=job, worker=worker)
    request.block_hashes = BlockNames(request, worker.replica.block_size, system_tokens)
    return request


def jobs_of(load: Load) -> list[Job]:
    """A job for each request. Sessions have a text each; so has every request without one."""
    own = iter(range(int(load.session.max()) + 2, len(load) + int(load.session.max()) + 3))
    sizes = (load.prompt_tokens.tolist(), load.output_tokens.tolist(), load.session.tolist())
    return [
        Job(index, prompt, output, APART * (session + 1 if session >= 0 else next(own)), session)
        for index, (prompt, output, session) in enumerate(zip(*sizes, strict=True))
    ]

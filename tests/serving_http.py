"""A server for tests: a small model behind real sockets, whose engine can be held between two steps."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import openai
import uvicorn
from small_checkpoints import small_tokenizer
from small_models import small_model
from waiting import wait_for

from minitransformer.serving import LLM
from minitransformer.serving.http.app import create_app
from minitransformer.serving.http.server import listen

MODEL = small_model(vocab_size=259, max_position_embeddings=512)  # as many tokens as small_tokenizer has
TEMPLATE = (
    "{% for m in messages %}{% if m.role not in ('system', 'user', 'assistant') %}"
    "{{ raise_exception('unknown role ' + m.role) }}{% endif %}"
    "{{ bos_token }}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ bos_token }}assistant:{% endif %}"
)


MESSAGES = [{"role": "system", "content": "be short"}, {"role": "user", "content": "hello"}]
PROMPT = "<s>system: be short</s><s>user: hello</s><s>assistant:"


class Server:
    """Where a running server is, and its engine."""

    def __init__(self, llm: LLM, url: str):
        self.llm, self.url = llm, url
        self.openai = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)
        self.http = httpx.Client(base_url=url, timeout=60)
        self._may_step, self._steps_left = threading.Condition(), None  # None: as many as there are
        step = llm.engine.step
        llm.engine.step = lambda: (self._take_turn(), step())[1]

    @contextmanager
    def held(self, steps: int = 0) -> Iterator[None]:
        """Within, the engine makes so many further steps at most."""
        self._allow(steps)
        try:
            yield
        finally:
            self._allow(None)

    def _allow(self, steps: int | None):
        with self._may_step:
            self._steps_left = steps
            self._may_step.notify()

    def _take_turn(self):
        with self._may_step:
            self._may_step.wait_for(lambda: self._steps_left != 0, timeout=60)
            if self._steps_left is not None:
                self._steps_left -= 1

    @property
    def held_blocks(self) -> int:
        return self.llm.engine.blocks.num_blocks - self.llm.engine.blocks.num_free

    def metric(self, name: str) -> float:
        lines = self.http.get("/metrics").text.splitlines()
        return next(float(line.split()[-1]) for line in lines if line.startswith(f"minitransformer_{name} "))


@contextmanager
def running(*, template: str | None = TEMPLATE, max_queue: int = 8, **options) -> Iterator[Server]:
    tokenizer = small_tokenizer(settings={"chat_template": template} if template else {})
    options = {"num_blocks": 400, "block_size": 4, "max_num_batched_tokens": 64, "max_num_seqs": 8} | options
    llm = LLM(MODEL, tokenizer, **options)
    with listen("127.0.0.1", 0) as listening:
        app = create_app(llm, "small", max_queue=max_queue)
        server = uvicorn.Server(uvicorn.Config(app, lifespan="on", log_level="warning", access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            wait_for(lambda: server.started)
            yield Server(llm, f"http://127.0.0.1:{listening.getsockname()[1]}")
        finally:
            server.should_exit = True
            thread.join(30)
    assert not thread.is_alive(), "the server did not stop"


def post(server, body, path="/v1/completions", **options):
    return server.http.post(path, json={"model": "small", **body}, **options)

"""Computes prompts: a request begins here and ends here with its first token.

The token goes to the router at once, so that no transfer is in the time to first token, and to the decode
worker behind the last keys and values.
"""

import time

from minitransformer.disaggregation.messages import AttemptFailed, Got, Hello, Job, Prefilled
from minitransformer.disaggregation.outgoing import Outgoing
from minitransformer.disaggregation.records import NewToken
from minitransformer.disaggregation.sender import KVSender, Sending
from minitransformer.disaggregation.worker import Worker
from minitransformer.serving.request import Request, Status


class PrefillWorker(Worker):
    kind, takes = "prefill", (Job,)
    connector: KVSender

    def _make_connector(self) -> KVSender:
        return KVSender(self.engine.cache, self.options.link, self._dial)

    def _dial(self, job: Job) -> Outgoing:
        address, host = (job.host, job.port), self.options.host
        link = Outgoing(self.network, self.inbox, address, host, self.options.link)
        return link.start(Hello(self.options.name, self.fingerprint, self.options.link.transport))

    def _take(self, message: Job, came_s: float):
        request = self._make_request(message.key, message.spec, len(message.spec.known_ids) + 1)
        self.connector.add(request, message, came_s)
        self.engine.add(request)

    def _take_from_peer(self, what: str, link: Outgoing, content):
        if what == "closed":
            for sending in self.connector.of_link(link):
                failed = AttemptFailed(sending.job.key, sending.job.attempt, f"{sending.job.peer}: {content}")
                self._end(sending)
                self.router.send(failed)
        elif isinstance(content, Got):
            self._drop(content.key, content.attempt)

    def _tell(self, requests: list[Request]):
        for request in requests:
            sending, now = self.connector.of(request), time.perf_counter()
            token, job = request.tokens[-1], sending.job
            new = NewToken(job.key, job.attempt, len(job.spec.known_ids), token)
            waited = request.started_s - sending.arrival_s
            self.router.send(Prefilled(new, waited, now - request.started_s))
            sending.link.put(new)

    def _drop(self, key: str, attempt: int):
        sending = self.connector.find(key, attempt)
        if sending is not None:
            self._end(sending)

    def _end(self, sending: Sending):
        """Nothing further is computed or sent; the blocks are free."""
        self.connector.forget(sending)
        if sending.request.status is not Status.FINISHED:
            self.engine.finish(sending.request, "abort")

    def _drop_all(self):
        for sending in self.connector.all():
            self._end(sending)
        self.connector.close("the router is lost")

    def _moved(self) -> tuple[int, float]:
        return self.connector.bytes_sent, self.connector.busy_s

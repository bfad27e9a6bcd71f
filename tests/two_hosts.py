"""A client on one of two hosts: asks what each line of standard input says, and prints what came.

python two_hosts.py FOLDER HOST PORT      the secret is in the environment
in:   [[prompt, max_tokens, seed or null], ...]
out:  "streaming" once some tokens are there, then [{"token_ids": ..., "stages": ...}, ...]
"""

import json
import os
import sys

from disaggregation_pool import Case, run

from minitransformer import SamplingParams
from minitransformer.disaggregation.client import RemoteLLM
from minitransformer.disaggregation.options import SECRET, Liveness


def main(folder: str, host: str, port: str):
    liveness = Liveness(0.2, 1.5)
    with RemoteLLM(folder, lambda: (host, int(port)), os.environ[SECRET].encode(), liveness=liveness) as llm:
        while len(llm.workers()) < 2:
            llm.engine.tend()
        print("ready", flush=True)
        for line in sys.stdin:
            asked = [
                Case(prompt, SamplingParams(max_tokens=n, seed=seed, temperature=float(seed is not None)))
                for prompt, n, seed in json.loads(line)
            ]
            streams = lambda got: any(len(tokens) > 3 for tokens in got.values())  # noqa: E731
            outputs = run(llm, asked, streams, lambda: print("streaming", flush=True))
            print(json.dumps([{"token_ids": o.token_ids, "stages": o.stages} for o in outputs]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

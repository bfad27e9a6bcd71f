"""Speed and memory, measured: what tests never assert, and what every claim about speed rests on.

    python -m benchmarks.cpu            this machine: against the transformers library and its own limits
    python -m benchmarks.serving        the part of it about the serving engine
    python -m benchmarks.serving_soak   20,000 short requests: what the engine forgets to give back
    python -m benchmarks.gpu            the whole GPU round, which writes a record that the lessons read

A figure has a device, a date, a command and versions; two ways of doing a thing are timed in turns, in
one run, and compared by ratios.
"""

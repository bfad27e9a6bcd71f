"""An OpenAI-compatible HTTP server in front of the engine.

errors and protocol say what may be asked, chat how messages become a prompt, answers what comes back;
runner lets the engine work in a thread of its own, metrics counts, app joins them, server listens.
"""

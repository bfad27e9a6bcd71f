"""Messages to a prompt, by the chat template that comes with a checkpoint's tokenizer.

A template is a program that came with somebody's weights, so it runs in jinja2's sandbox.
"""

from datetime import datetime

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from minitransformer.serving.http.errors import ApiError
from minitransformer.tokenizer import Tokenizer


def chat_prompt(tokenizer: Tokenizer | None, messages: list[dict]) -> list[int]:
    """Token ids of the conversation, up to where the assistant's answer begins.

    Raises ApiError where the tokenizer has no template, or the template refuses the messages.
    """
    settings = {} if tokenizer is None else tokenizer.settings
    template = _template(settings)
    if template is None:
        raise ApiError(400, "this model has no chat template: use /v1/completions", code="no_chat_template")
    try:
        text = (
            _environment()
            .from_string(template)
            .render(messages=messages, add_generation_prompt=True, **_special_tokens(settings))
        )
    except TemplateError as error:
        message = f"the model's chat template refuses these messages: {error}"
        raise ApiError(400, message, param="messages") from None
    return tokenizer.encode(text, add_special_tokens=False)  # the template has put them where they belong


def _template(settings: dict) -> str | None:
    """The checkpoint's template; of several with names, the default one."""
    template = settings.get("chat_template")
    if isinstance(template, list):
        template = {one["name"]: one["template"] for one in template}.get("default")
    return template


def _environment() -> ImmutableSandboxedEnvironment:
    """Jinja as the transformers library sets it up, which templates are written for."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _refuse(message: str):
    raise TemplateError(message)


def _special_tokens(settings: dict) -> dict[str, str]:
    return {name: settings[name] for name in ("bos_token", "eos_token") if settings.get(name)}

"""Where the time of a pass really goes: measured seconds under the names that `costs` prices.

torch.profiler knows PyTorch's operators, not the model's: one `linear` looks like the next. So every
module marks when it starts and ends, and each operator's own time is charged to the module around it.
Scores, softmax and values run as one operator here and are one entry, "attention" (see `fused`).

A profiler adds some microseconds to every operator on a CPU: trust the shares of large operators, and
take the time of a whole pass from a clock.
"""

import os
from collections.abc import Callable, Iterable

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from minitransformer.roofline.costs import ATTENTION, Cost

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler prints a line at each start and stop

MARK = "module:"
OTHER = "other"  # Python between operators, and whatever has no price in `costs`
MODULES = {  # modules that are one operator, by the last part of their name
    "q_proj": "qkv_proj",
    "k_proj": "qkv_proj",
    "v_proj": "qkv_proj",
    "gate_proj": "gate_up_proj",
    "up_proj": "gate_up_proj",
    "o_proj": "o_proj",
    "down_proj": "down_proj",
    "lm_head": "lm_head",
    "embed_tokens": "embedding",
    "input_layernorm": "norm",
    "post_attention_layernorm": "norm",
    "norm": "norm",
    "q_norm": "norm",
    "k_norm": "norm",
}
# What stands between those, by the module around it and PyTorch's name; "" is every other name.
BETWEEN = {
    "self_attn": {
        "": "attention",
        "aten::mul": "rope",
        "aten::neg": "rope",
        "aten::cat": "rope",
        "aten::add": "rope",
        "aten::copy_": "cache_write",
    },
    "mlp": {"": "swiglu"},
    "layer": {"": "residual"},
    "model": {"": OTHER, "aten::linear": "lm_head"},  # tied embeddings: the head is no module
}


def operator_times(model: torch.nn.Module, run: Callable, *, repeats: int = 5) -> dict[str, float]:
    """Seconds of one `run()` by operator, the fastest of `repeats` runs, after one to warm up.

    `run` calls the model once. On a GPU these are the seconds of its kernels, on a CPU those of the
    operators; what Python itself takes on a CPU is in "other".
    """
    run()
    hooks = [hook for name, module in model.named_modules() for hook in _marks(name, module)]
    try:
        runs = [_profiled(run) for _ in range(repeats)]
    finally:
        for hook in hooks:
            hook.remove()
    return min(runs, key=lambda times: sum(times.values()))


def fused(operators: dict[str, Cost]) -> dict[str, Cost]:
    """The same costs with scores, softmax and values as one: the names of `operator_times`."""
    rest = {name: cost for name, cost in operators.items() if name not in ATTENTION}
    return rest | {"attention": sum((operators[name] for name in ATTENTION), Cost())}


def _marks(name: str, module: torch.nn.Module) -> list:
    """Hooks that open a named range before the module runs and close it afterwards."""
    open_ranges = []

    def before(module, args):
        open_ranges.append(record_function(MARK + name))
        open_ranges[-1].__enter__()

    def after(module, args, out):
        open_ranges.pop().__exit__(None, None, None)

    return [module.register_forward_pre_hook(before), module.register_forward_hook(after)]


def _profiled(run: Callable) -> dict[str, float]:
    on_gpu = torch.cuda.is_available()
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu) as profiler:
        run()
        if on_gpu:
            torch.cuda.synchronize()
    return by_operator(profiler.events())


def by_operator(events: Iterable) -> dict[str, float]:
    """Sums the own time of profiler events, in seconds, by the operator of ours that each belongs to.

    Kernel times where there are any, else the CPU's.
    """
    events = [e for e in events if e.device_type == torch.autograd.DeviceType.CPU]
    on_gpu = any(e.self_device_time_total > 0 for e in events)
    seconds: dict[str, float] = {}
    for event in events:
        own = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if (place := _place(event)) is not None and own > 0:
            seconds[place] = seconds.get(place, 0.0) + own / 1e6
    return seconds


def _place(event) -> str | None:
    """The operator of ours that a profiler event is part of; None outside the model."""
    outermost = event  # PyTorch's operators call each other: the outermost says what was asked for
    while event is not None and not event.name.startswith(MARK):
        outermost, event = event, event.cpu_parent
    if event is None:
        return None
    last = event.name.removeprefix(MARK).rpartition(".")[2]
    if last in MODULES:
        return MODULES[last]
    if outermost is event:
        return OTHER  # the module's own time: Python
    within = BETWEEN.get(last or "model") or BETWEEN["layer" if last.isdigit() else "model"]
    return within.get(outermost.name, within[""])

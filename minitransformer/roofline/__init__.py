"""Prices work: FLOPs and bytes of operators and phases, and what they take on a device.

    costs     what prefill, decode and every operator do, from shapes alone
    napkin    the formulas that fit in a head: batch limits, floors, prices
    devices   the limits of chips, and the time a cost takes at least
    models    shapes of public models
    tiles     what whole tiles and whole waves cost a matrix product
    shapes    model shapes of equal size, priced by their tiles
    measure   the limits of this machine
    records   what real GPUs gave

A cost needs no model and no tensor; only `measure` runs anything.
"""

from minitransformer.roofline.costs import (
    ATTENTION,
    LINEAR,
    Cost,
    decode_cost,
    decode_operators,
    matmul_flops,
    pass_operators,
    prefill_cost,
    prefill_operators,
)
from minitransformer.roofline.devices import DEVICES, Device
from minitransformer.roofline.dtypes import dtype_bytes, dtype_name
from minitransformer.roofline.measure import NoisyMachine, measure_device
from minitransformer.roofline.models import LATENT_MODELS, MODELS, LatentModel
from minitransformer.roofline.napkin import (
    attention_intensity,
    critical_batch,
    crossover_context,
    decode_rate,
    dollars_per_million_tokens,
    experts_read,
    kv_bytes_per_token,
    machine_ratio,
    max_batch,
    prefill_rate,
    tpot_floor,
    transfer_ratio,
    ttft_floor,
    weight_bytes,
)
from minitransformer.roofline.records import NO_RECORD, load_record, load_records, recorded_device

__all__ = [
    "ATTENTION",
    "DEVICES",
    "LATENT_MODELS",
    "LINEAR",
    "MODELS",
    "NO_RECORD",
    "Cost",
    "Device",
    "LatentModel",
    "NoisyMachine",
    "attention_intensity",
    "critical_batch",
    "crossover_context",
    "decode_cost",
    "decode_operators",
    "decode_rate",
    "dollars_per_million_tokens",
    "dtype_bytes",
    "dtype_name",
    "experts_read",
    "kv_bytes_per_token",
    "load_record",
    "load_records",
    "machine_ratio",
    "matmul_flops",
    "max_batch",
    "measure_device",
    "pass_operators",
    "prefill_cost",
    "prefill_operators",
    "prefill_rate",
    "recorded_device",
    "tpot_floor",
    "transfer_ratio",
    "ttft_floor",
    "weight_bytes",
]

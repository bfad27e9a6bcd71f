"""Number formats by name, and how many bytes a number of each takes.

A format is given as a name ("bf16", "int4", ...) or as a torch.dtype; both mean the same everywhere in
`roofline`. Names exist because some formats have no torch.dtype: int4 and fp4 (two numbers a byte), and
tf32, which is stored as fp32 and multiplied at reduced precision.
"""

BYTES = {"fp32": 4, "tf32": 4, "bf16": 2, "fp16": 2, "fp8": 1, "int8": 1, "int4": 0.5, "fp4": 0.5}

_OTHER_NAMES = {
    "float32": "fp32",
    "float": "fp32",
    "bfloat16": "bf16",
    "float16": "fp16",
    "half": "fp16",
    "float8_e4m3fn": "fp8",
    "float8_e5m2": "fp8",
}


def dtype_name(dtype) -> str:
    """The name of a number format: "bf16" for "bf16", "bfloat16" and torch.bfloat16.

    Raises ValueError for any other format.
    """
    name = str(dtype).removeprefix("torch.").lower()
    name = _OTHER_NAMES.get(name, name)
    if name not in BYTES:
        raise ValueError(f"unknown number format {dtype!r}: give a torch.dtype or one of {', '.join(BYTES)}")
    return name


def dtype_bytes(dtype) -> float:
    """Bytes a number: 2 for bf16, 0.5 for int4 (scales of quantized groups are not counted)."""
    return BYTES[dtype_name(dtype)]


def wide_format(dtype) -> str:
    """The format of activations and cache beside weights of this one: the same, or bf16 if it is narrower."""
    return dtype_name(dtype) if dtype_bytes(dtype) >= 2 else "bf16"

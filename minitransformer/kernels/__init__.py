"""Triton kernels of inference, one idea a file, each beside its plain PyTorch reference.

They take CUDA tensors, or CPU tensors through Triton's interpreter where there is no GPU; importing them
never needs one. On a system without Triton (anything but Linux) the import says so. They are for inference:
there is no backward pass, and a result carries no gradient.
"""

from minitransformer.kernels.runtime import INTERPRETED  # first: it decides how Triton runs

# isort: split
from minitransformer.kernels.compiling import Compiled, CompileError, compile_kernel
from minitransformer.kernels.flash_attention import flash_attention, flash_attention_reference
from minitransformer.kernels.flash_decode import flash_decode, flash_decode_reference
from minitransformer.kernels.matmul import matmul, matmul_reference
from minitransformer.kernels.paged_attention import paged_attention, paged_attention_reference
from minitransformer.kernels.paged_prefill import paged_prefill, paged_prefill_reference
from minitransformer.kernels.rms_norm import (
    add_rms_norm,
    add_rms_norm_reference,
    rms_norm,
    rms_norm_reference,
)
from minitransformer.kernels.rope import rope, rope_reference
from minitransformer.kernels.softmax import softmax, softmax_reference
from minitransformer.kernels.swiglu import swiglu, swiglu_reference

__all__ = [
    "INTERPRETED",
    "CompileError",
    "Compiled",
    "add_rms_norm",
    "add_rms_norm_reference",
    "compile_kernel",
    "flash_attention",
    "flash_attention_reference",
    "flash_decode",
    "flash_decode_reference",
    "matmul",
    "matmul_reference",
    "paged_attention",
    "paged_attention_reference",
    "paged_prefill",
    "paged_prefill_reference",
    "rms_norm",
    "rms_norm_reference",
    "rope",
    "rope_reference",
    "softmax",
    "softmax_reference",
    "swiglu",
    "swiglu_reference",
]

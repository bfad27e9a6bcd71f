"""What the checks read from a compiled kernel: spills, tensor cores, and sums that are kept in 16 bits."""

import re

from minitransformer.course.checking import expect

NARROW = r"(?:bf16|f16)"


def expect_no_spills(compiled, given: str = ""):
    """Fails where values found no register and were moved to memory."""
    start = f"For {given}, the" if given else "The"
    expect(
        compiled.spilled_bytes == 0,
        f"{start} kernel compiles, but {compiled.spilled_bytes} bytes of each thread spill from its "
        f"{compiled.registers} registers into memory: the blocks are too large for the number of warps.",
    )


def expect_tensor_cores(compiled, given: str = ""):
    """Fails where no matrix instruction is in the PTX."""
    start = f"For {given}, the" if given else "The"
    expect(
        bool(compiled.tensor_core_instructions),
        f"{start} kernel compiles, but uses no tensor cores: multiply tiles with tl.dot, on 16-bit operands.",
    )


def expect_float32_sums(compiled, given: str = ""):
    """Fails where the compiled kernel adds up in bfloat16 or float16: tl.dot, tl.sum, or an accumulator."""
    where = narrow_sums(compiled.ttgir)
    start = f"For {given}, the" if given else "The"
    expect(
        not where,
        f"{start} kernel compiles, but {where}. After a few hundred terms the small ones are rounded "
        "away: keep sums in float32 and round once, at the store.",
    )


def narrow_sums(ttgir: str) -> str:
    """What adds up in 16 bits, in words, or ""."""
    if re.search(rf"(?:tt\.dot|warp_group_dot)\b.*->\s*tensor<[\dx]+x{NARROW}\b", ttgir):
        return "its tl.dot accumulates in 16 bits"
    for region in re.findall(r'"tt\.reduce".*?tt\.reduce\.return', ttgir, re.DOTALL):
        if re.search(rf"arith\.addf .*: {NARROW}\b", region):
            return "its tl.sum adds up in 16 bits"
    rounded = set(re.findall(rf"(%[\w.]+) = arith\.(?:addf|truncf) .*tensor<[\dx]+x{NARROW}\b", ttgir))
    for name, operand in re.findall(r"(%[\w.]+) = (?:arith\.extf|ttg\.convert_layout) (%[\w.]+)", ttgir):
        rounded |= {name} if operand in rounded else set()
    for values in re.findall(r"scf\.yield ([^:\n]*):", ttgir):
        if rounded & {value.strip() for value in values.split(",")}:
            return "its accumulator is of 16 bits, rounded in every turn of the loop"
    return ""

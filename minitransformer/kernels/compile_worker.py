"""The process that compiles: jobs as JSON on its standard input, results as JSON on its output.

Run by compiling.py with TRITON_INTERPRET=0. It imports nothing of this package, only Triton.
"""

import contextlib
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path


def main():
    """Compiles every job; an error is a result too."""
    jobs, results = json.load(sys.stdin), []
    with tempfile.TemporaryDirectory() as folder:
        _choose_cache(folder)
        for job in jobs:
            shown = io.StringIO()  # what Triton or the source prints is no part of the answer
            with contextlib.redirect_stdout(shown):
                results.append(_result(job, Path(folder)))
    json.dump(results, sys.stdout)


def compile_job(job: dict, folder: Path) -> dict:
    """The fields of `Compiled` that only compiling tells."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = load_kernel(job["source"], job["name"], folder)
    source = ASTSource(kernel, *arguments(kernel, job["signature"], job["constexprs"]))
    options = {"num_warps": job["num_warps"], "num_stages": job["num_stages"]}
    compiled = triton.compile(source, target=GPUTarget("cuda", job["arch"], 32), options=options)
    registers, spilled = resources(compiled.asm["cubin"], folder)
    return {
        "name": kernel.__name__,
        "ttgir": compiled.asm["ttgir"],
        "ptx": compiled.asm["ptx"],
        "registers": registers,
        "shared_bytes": compiled.metadata.shared,
        "spilled_bytes": spilled,
        "tensor_memory_columns": getattr(compiled.metadata, "tmem_size", None) or 0,
    }


def load_kernel(source: str, name: str | None, folder: Path):
    """The kernel that a source text defines. Triton reads a kernel's source from a file, so it gets one."""
    from triton.runtime.jit import JITFunction

    path = folder / f"kernel_{len(list(folder.iterdir()))}.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = {key: _below_decorators(value) for key, value in vars(module).items() if hasattr(value, "fn")}
    found = {key: value for key, value in found.items() if isinstance(value, JITFunction)}
    if not found:
        raise ValueError("the source defines no function under @triton.jit")
    if name is not None and name not in found:
        raise ValueError(f"the source defines no kernel {name}, only {', '.join(found)}")
    return found[list(found)[-1] if name is None else name]


def arguments(kernel, signature: dict, constexprs: dict) -> tuple[dict, dict, dict]:
    """Signature, constants and promises of divisibility, as Triton's ASTSource takes them."""
    given = set(signature) | set(constexprs)
    missing, unknown = set(kernel.arg_names) - given, given - set(kernel.arg_names)
    if missing or unknown:
        missing, unknown = (", ".join(sorted(names)) or "none" for names in (missing, unknown))
        known = ", ".join(kernel.arg_names)
        raise ValueError(f"its arguments are {known}; missing: {missing}, unknown: {unknown}")
    types, values, promises = {}, {}, {}
    for position, name in enumerate(kernel.arg_names):
        kind, _, promise = signature.get(name, "constexpr").partition(":")
        types[name] = "constexpr" if promise == "1" or kind == "none" else kind
        if name in constexprs:
            values[name] = _value(constexprs[name])
        elif types[name] == "constexpr":
            values[name] = None if kind == "none" else 1
        elif promise == "16":
            promises[(position,)] = [["tt.divisibility", 16]]
    return types, values, promises


def resources(cubin: bytes, folder: Path) -> tuple[int, int]:
    """Registers of each thread, and the bytes of its registers that were spilled, from the binary.

    Triton's kernels have no arrays of their own, so what they store to their stack is spilled registers.
    A stack that no instruction touches is only reserved.
    """
    path = folder / "kernel.cubin"
    path.write_bytes(cubin)
    usage = re.search(r"REG:(\d+) STACK:(\d+)", _cuobjdump("-res-usage", path))
    registers, stack = int(usage[1]), int(usage[2])
    touched = stack > 0 and re.search(r"\b(STL|LDL)\b", _cuobjdump("-sass", path))
    return registers, stack if touched else 0


def _cuobjdump(what: str, path: Path) -> str:
    """NVIDIA's reader of binaries, which Triton brings."""
    import triton.backends.nvidia

    tool = Path(triton.backends.nvidia.__file__).with_name("bin") / "cuobjdump"
    return subprocess.run([tool, what, path], capture_output=True, text=True, check=True).stdout


def _result(job: dict, folder: Path) -> dict:
    try:
        return compile_job(job, folder)
    except Exception as error:  # of any kind: the source is somebody's draft
        return {"name": job["name"] or "the kernel", "error": _in_words(error)}


def _in_words(error: Exception) -> str:
    """The message, and that of its cause: Triton shows the line in one and the reason in the other."""
    texts = []
    while error is not None:
        text = str(error).strip() or type(error).__name__
        texts += [] if any(text in known for known in texts) else [text]
        error = error.__cause__
    return "\n".join(texts)


def _below_decorators(value):
    while not hasattr(value, "arg_names") or not hasattr(value, "cache_key"):  # autotune, heuristics
        if not hasattr(value, "fn"):
            return value
        value = value.fn
    return value


def _value(value):
    import triton.language as tl

    return tl.dtype(value["dtype"]) if isinstance(value, dict) else value


def _choose_cache(folder: str):
    """Triton keeps what it compiled in the home folder; where that can't be written, in `folder`."""
    if "TRITON_CACHE_DIR" not in os.environ:
        try:
            (Path.home() / ".triton" / "cache").mkdir(parents=True, exist_ok=True)
        except OSError:
            os.environ["TRITON_CACHE_DIR"] = str(Path(folder) / "cache")


if __name__ == "__main__":
    main()

"""What nvcc made of every CUDA kernel: registers, shared memory, occupancy, instructions.

    python tests/kernel_resources.py [--build build/cuda] [--match TEXT] [--started]

Reads the objects that nvcc made, of the preset `cuda` or another with that device, with cuobjdump;
needs no GPU. A kernel fails when it

- spills or has a stack frame,
- has no __launch_bounds__, or is started with more threads than they declare,
- fits fewer blocks into a multiprocessor than its __launch_bounds__ declare,
- is in TENSOR_CORES below and has no HMMA, or has them and is not,
- makes no 128-bit access to global memory, and is not in NARROW below,
- uses generic addresses: the compiler lost track of which memory a pointer points to.

Dynamic shared memory is not in the objects. The program kernel_launches, of the same build, says
with how many threads and how much of it each kernel is started at the shapes of a 7B model; "-"
stands for kernels that are not, such as those for unaligned memory.
"""

import argparse
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent

# Kernels whose products run on tensor cores, as patterns of "file: name".
TENSOR_CORES = [
    r"^linear_attention_(forward|backward|segments).cu: \w+_kernel<(64|128)",
    r"^softmax_attention(_backward)?.cu: flash_\w+<(64|128)",
]

# Kernels without a 128-bit access to global memory, and why that is right.
NARROW = {
    r"<(\w+, )*1[,>]": "the fallback for addresses and row lengths that do not allow wide accesses",
    r": add_partial_sums_kernel$": "one block adds 528 numbers",
    r": add_bias_sums_kernel$": "partial sums of a bias, a number a column; columns of the groups "
    "that share a bias need not lie at multiples of four",
    r": (count_digits|exclusive_scan|scatter)_kernel$": "positions go to their places one by one; "
    "all their lists are a thousandth of the gradient that is summed next",
    r"^linear_attention_recurrent.cu: (denominator|normalize|store_gradient)": "any head width: "
    "the lanes of a warp lie side by side along a row of it",
    r"^softmax_attention_plain.cu: ": "any head width, likewise, for what tensor cores do not take",
    r"^product_trial.cu: ": "runs once per shape of a product, when the program starts",
}

# One H100 multiprocessor (CUDA C programming guide, compute capability 9.0).
REGISTERS, WARPS, BLOCKS, SHARED = 65536, 64, 32, 228 * 1024
THREADS_MOST = 1024  # of a block
# Registers are dealt out to a warp in units of 256, from one of four parts.
REGISTER_UNIT, PARTS = 256, 4
# What the system keeps of every block's shared memory; cuobjdump adds it to what is not zero.
RESERVED_SHARED = 1024

COLUMNS = (
    "kernel", "file", "threads", "registers", "shared", "dynamic", "blocks", "HMMA", "128-bit"
)  # fmt: skip


class Kernel(NamedTuple):
    name: str
    file: str
    registers: int
    register_limit: int  # that __launch_bounds__ gave the compiler
    threads: int  # that __launch_bounds__ declares, 0 without
    stack: int
    shared: int  # static, bytes
    local: int  # accesses to local memory
    hmma: int
    wide: int  # 128-bit accesses to global memory
    generic: int  # accesses through generic addresses


class Launch(NamedTuple):
    threads: int
    dynamic: int  # shared memory, bytes


def cuobjdump_path() -> str:
    """The toolkit's, or that of the Python environment."""
    packaged = list(Path(sys.prefix).glob("lib/python*/site-packages/nvidia/cu*/bin/cuobjdump"))
    found = shutil.which("cuobjdump") or next(map(str, packaged), None)
    if not found:
        sys.exit(
            "error: there is no cuobjdump; install the CUDA toolkit's, or, into .venv, "
            "what tests/cuda_requirements.txt lists"
        )
    return found


def output_of(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def short_name(demangled: str) -> str:
    """'rms_norm_forward_kernel<__nv_bfloat16, 8, true>': no namespaces, no parameters."""
    name = re.sub(r"\(anonymous namespace\)::|supra::cuda::|^void ", "", demangled)
    depth = 0
    for i, c in enumerate(name):
        depth += {"<": 1, ">": -1}.get(c, 0)
        if c == "(" and depth == 0:
            return name[:i].replace("__nv_bfloat16", "bf16").replace(" >", ">")
    return name


def sections(text: str, header: str) -> dict[str, str]:
    """{name: what follows it} of a listing cut at lines that match `header`, its group a name."""
    parts = re.split(header, text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def kernels_of(object_file: Path, cuobjdump: str) -> dict[str, Kernel]:
    """The kernels of one object, by mangled name."""

    def listing(option: str, header: str) -> dict[str, str]:
        return sections(output_of(cuobjdump, option, str(object_file)), header)

    usage = listing("--dump-resource-usage", r"^ Function (\S+):$")
    if not usage:
        return {}
    code = listing("-sass", r"^\s*Function : (\S+)$")
    attributes = listing("-elf", r"^\.nv\.info\.(\S+)$")
    names = output_of("c++filt", *usage).splitlines()
    file = object_file.name.removesuffix(".o")
    return {
        mangled: kernel(short_name(name), file, usage[mangled], code[mangled], attributes[mangled])
        for mangled, name in zip(usage, names, strict=True)
    }


def kernel(name: str, file: str, usage: str, code: str, attributes: str) -> Kernel:
    """Of cuobjdump's paragraphs about it."""
    used = {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", usage)}
    opcodes = re.findall(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?\w+\s+)?([A-Z][\w.]*)", code, re.MULTILINE)

    def attribute(name: str) -> list[int]:
        found = re.search(name + r"\n.*\n\s*Value:\s*((?:0x[0-9a-f]+\s*)+)", attributes)
        return [int(value, 16) for value in found[1].split()] if found else []

    def count(pattern: str) -> int:
        return sum(bool(re.match(pattern, opcode)) for opcode in opcodes)

    return Kernel(
        name=name,
        file=file,
        registers=used["REG"],
        register_limit=attribute("EIATTR_MAXREG_COUNT")[0],
        threads=math.prod(attribute("EIATTR_MAX_THREADS") or [0]),
        stack=used["STACK"],
        shared=max(0, used["SHARED"] - RESERVED_SHARED),
        local=count(r"(LDL|STL)\b"),
        hmma=count(r"HG?MMA\b"),
        wide=count(r"(LDG|STG|LDGSTS)\.\S*128|UBLKCP|UTMALDG|UTMASTG"),
        generic=count(r"(LD|ST)(\.|$)"),
    )


def warps(threads: int) -> int:
    return math.ceil(threads / 32)


def blocks_by_registers(registers: int, threads: int) -> int:
    of_warp = math.ceil(registers * 32 / REGISTER_UNIT) * REGISTER_UNIT
    return REGISTERS // PARTS // of_warp * PARTS // warps(threads)


def blocks(kernel: Kernel, launch: Launch | None) -> int:
    """Blocks that a multiprocessor holds."""
    threads = (launch.threads if launch else kernel.threads) or THREADS_MOST
    shared = kernel.shared + (launch.dynamic if launch else 0) + RESERVED_SHARED
    by_threads = min(WARPS // warps(threads), BLOCKS)
    return min(by_threads, blocks_by_registers(kernel.registers, threads), SHARED // shared)


def declared_blocks(kernel: Kernel) -> int:
    """The blocks of __launch_bounds__: nvcc keeps the number of registers that it follows from."""
    no_limit = 255
    if kernel.register_limit >= no_limit:
        return 1
    return blocks_by_registers(kernel.register_limit, kernel.threads)


def is_listed(kernel: Kernel, patterns: Iterable[str]) -> bool:
    return any(re.search(p, f"{kernel.file}: {kernel.name}") for p in patterns)


def faults(kernel: Kernel, launch: Launch | None) -> Iterator[str]:
    if kernel.stack or kernel.local:
        yield f"{kernel.stack} bytes of stack, {kernel.local} accesses to local memory"
    if not kernel.threads:
        yield "no __launch_bounds__"
        return
    if launch and launch.threads > kernel.threads:
        yield f"started with {launch.threads} threads, {kernel.threads} are declared"
    fit, declared = blocks(kernel, launch), declared_blocks(kernel)
    if fit < declared:
        yield f"{fit} blocks fit into a multiprocessor, {declared} are declared"
    if is_listed(kernel, TENSOR_CORES) and not kernel.hmma:
        yield "no tensor-core instruction"
    if kernel.hmma and not is_listed(kernel, TENSOR_CORES):
        yield f"{kernel.hmma} tensor-core instructions, but it is not in TENSOR_CORES"
    if not kernel.wide and not is_listed(kernel, NARROW):
        yield "no 128-bit access to global memory"
    if kernel.generic:
        yield f"{kernel.generic} accesses through generic addresses"


def parse_launches(text: str) -> dict[str, Launch]:
    """{mangled name: the launch with the most shared memory} of lines 'name threads dynamic'."""
    launches: dict[str, Launch] = {}
    for line in text.splitlines():
        name, *numbers = line.split()
        launch = Launch(*map(int, numbers))
        if name not in launches or launches[name].dynamic < launch.dynamic:
            launches[name] = launch
    return launches


def table(rows: list[tuple]) -> str:
    """Markdown, the first row its head, columns aligned."""
    widths = [max(len(str(cell)) for cell in column) for column in zip(*rows, strict=True)]
    padded = [
        [str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows
    ]
    lines = ["| " + " | ".join(cells) + " |" for cells in padded]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--build", type=Path, default=ROOT / "build/cuda", help="a build folder")
    parser.add_argument("--match", default="", help="show these kernels or files only")
    parser.add_argument("--started", action="store_true", help="show kernels without a - only")
    options = parser.parse_args()

    cuobjdump = cuobjdump_path()
    build = options.build.resolve()
    kernels = {}
    for object_file in sorted(build.glob("runtime/**/supra_cuda_gpu.dir/**/*.cu.o")):
        kernels |= kernels_of(object_file, cuobjdump)
    recorder = build / "kernel_launches"
    if not kernels or not recorder.exists():
        sys.exit(f"error: {build} has no kernels or no kernel_launches; build the preset cuda")
    started = subprocess.run([recorder], capture_output=True, text=True)
    launches = parse_launches(started.stdout)

    rows = [COLUMNS]
    failures = []
    for mangled, k in sorted(kernels.items(), key=lambda item: (item[1].file, item[1].name)):
        launch = launches.get(mangled)
        failures += [(k, fault) for fault in faults(k, launch)]
        matches = options.match in k.file or options.match in k.name
        if matches and (launch or not options.started):
            threads, dynamic = launch or (k.threads, "-")
            fit = blocks(k, launch)
            rows.append(
                (k.name, k.file, threads, k.registers, k.shared, dynamic, fit, k.hmma, k.wide)
            )
    print(table(rows))
    unused = [
        pattern
        for pattern in [*TENSOR_CORES, *NARROW]
        if not any(is_listed(k, [pattern]) for k in kernels.values())
    ]
    for pattern in unused:
        print(f"FAILED {pattern}: a pattern in TENSOR_CORES or NARROW that no kernel matches")
    for k, fault in failures:
        print(f"FAILED {k.file}: {k.name}: {fault}")
    if started.returncode:
        print(f"FAILED kernel_launches: {started.stderr.strip()}")
    bad_kernels = len({k for k, _ in failures})
    failed = bad_kernels + len(unused) + (started.returncode != 0)
    print(f"{len(kernels) - bad_kernels} passed, {failed} failed")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()

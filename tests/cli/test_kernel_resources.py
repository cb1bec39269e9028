"""The check of kernels finds what it is for, in cuobjdump's words and in numbers made up here."""

import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "tests"))
import kernel_resources as resources

GOOD = resources.Kernel(
    name="good_kernel<bf16, 8>",
    file="good.cu",
    registers=64,
    register_limit=64,
    threads=256,
    stack=0,
    shared=1024,
    local=0,
    hmma=0,
    wide=2,
    generic=0,
)


def faults(launch: resources.Launch | None = None, **changes: object) -> list[str]:
    return list(resources.faults(GOOD._replace(**changes), launch))


def test_a_good_kernel_has_no_fault() -> None:
    assert faults() == []
    assert faults(resources.Launch(threads=256, dynamic=55 * 1024)) == []


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"stack": 8}, "8 bytes of stack"),
        ({"local": 3}, "3 accesses to local memory"),
        ({"threads": 0}, "no __launch_bounds__"),
        ({"registers": 72}, "3 blocks fit into a multiprocessor, 4 are declared"),
        ({"shared": 60 * 1024}, "3 blocks fit into a multiprocessor, 4 are declared"),
        ({"launch": resources.Launch(256, 56 * 1024)}, "3 blocks fit"),
        ({"launch": resources.Launch(512, 0)}, "started with 512 threads, 256 are declared"),
        ({"hmma": 1}, "not in TENSOR_CORES"),
        ({"wide": 0}, "no 128-bit access"),
        ({"generic": 1}, "1 accesses through generic addresses"),
    ],
)
def test_a_fault_is_named(changes: dict[str, object], fault: str) -> None:
    assert fault in "; ".join(faults(**changes))


def test_a_tensor_core_kernel_must_use_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "TENSOR_CORES", [r"good.cu: good_kernel"])
    assert faults() == ["no tensor-core instruction"]
    assert faults(hmma=1) == []


@pytest.mark.parametrize(
    ("registers", "threads", "blocks"),
    [(32, 256, 8), (33, 256, 6), (40, 256, 6), (41, 256, 5), (64, 256, 4), (64, 1024, 1),
     (128, 128, 4), (168, 384, 1), (255, 256, 1)],
)  # fmt: skip
def test_registers_are_dealt_out_by_the_warp(registers: int, threads: int, blocks: int) -> None:
    assert resources.blocks_by_registers(registers, threads) == blocks


def test_a_kernel_is_read_from_cuobjdump() -> None:
    kernel = resources.kernel(
        name=resources.short_name(
            "void supra::cuda::(anonymous namespace)::f_kernel<__nv_bfloat16, 8>(float const*, int)"
        ),
        file="f.cu",
        usage="  REG:40 STACK:16 SHARED:3072 LOCAL:0 CONSTANT[0]:608 TEXTURE:0",
        code="""
        /*0000*/                   LDC R1, c[0x0][0x28] ;       /* 0x00000a00ff017b82 */
                                                                /* 0x000fe20000000800 */
        /*0010*/              @!P0 LDG.E.128.CONSTANT R4, desc[UR4][R2.64] ;
        /*0020*/                   LDG.E R4, desc[UR4][R2.64] ;
        /*0030*/                   LDGSTS.E.BYPASS.128 [R9], desc[UR4][R2.64] ;
        /*0040*/               @P1 HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
        /*0050*/                   LDL R4, [R1] ;
        /*0060*/                   LD.E R4, desc[UR4][R2.64] ;
        """,
        attributes="""
        Attribute:	EIATTR_MAXREG_COUNT
        Format:	EIFMT_HVAL
        Value:	0x40
        <0x20>
        Attribute:	EIATTR_MAX_THREADS
        Format:	EIFMT_SVAL
        Value:	0x8 0x20 0x1
        """,
    )
    assert kernel == resources.Kernel(
        name="f_kernel<bf16, 8>",
        file="f.cu",
        registers=40,
        register_limit=64,
        threads=256,
        stack=16,
        shared=2048,
        local=1,
        hmma=1,
        wide=2,
        generic=1,
    )


def test_the_launch_with_most_shared_memory_counts() -> None:
    text = "f 128 1024\nf 128 2048\ng 32 0\n"
    assert resources.parse_launches(text) == {"f": (128, 2048), "g": (32, 0)}

"""Counting machine instructions, on a disassembled kernel that was shortened by hand."""

import pytest
import sass

# Two loops in another one, the end of a kernel (a branch to itself), and a branch ahead.
TEXT = """
.section	.text.kernel,"ax",@progbits
.text.kernel:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   S2R R0, SR_TID.X ;
.L_x_2:
        /*0020*/                   LDGSTS.E.BYPASS.128 [R4], desc[UR8][R2.64] ;
        /*0030*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR4], RZ, !UPT ;
        /*0040*/                   HGMMA.64x64x16.F32.BF16 R24, R8, gdesc[UR4], R24, gsb0 ;
        /*0050*/              @!P1 LDG.E R9, desc[UR8][R2.64+0x4] ;
        /*0060*/                   MUFU.EX2 R10, R9 ;
        /*0070*/                   LDG.E.64 R12, desc[UR8][R2.64] ;
        /*0080*/               @P2 RED.E.ADD.F32.FTZ.RN.STRONG.GPU desc[UR8][R2.64], R9 ;
        /*0090*/              @!P0 BRA `(.L_x_2) ;
.L_x_3:
        /*00a0*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
        /*00b0*/                   HGMMA.64x16x8.F32.TF32 R4, R8, R12, R4 ;
        /*00c0*/               @P0 BRA `(.L_x_3) ;
        /*00d0*/              @!P3 BRA `(.L_x_1) ;
        /*00e0*/               @P4 BRA `(.L_x_5) ;
        /*00f0*/                   EXIT ;
.L_x_5:
        /*0100*/                   BRA `(.L_x_5) ;
"""


def test_loops_are_those_without_a_loop_inside():
    first, second = sass.loops(TEXT)
    assert len(first) == 8
    assert first[0].startswith("LDGSTS")
    assert sass.operations(second) == {"HMMA": 1, "HGMMA": 1, "BRA": 1}


def test_products_of_all_warps():
    first, second = sass.loops(TEXT)
    assert sass.products(first, warps=8) == 2 * 2 * 64 * 64 * 16
    assert sass.products(second, warps=8) == 8 * 16 * 8 * 16
    assert sass.products(second, 8, "TF32") == 2 * 64 * 16 * 8
    assert sass.products(first, 8, "TF32") == 0


def test_loads_and_atomics():
    first, _ = sass.loops(TEXT)
    assert sass.loads(first) == {"LDGSTS 128": 1, "LDG 32": 1, "LDG 64": 1}
    assert sass.atomics(first) == 1


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [((16, 1, 128), 0.125), ((4, 1, 64), 0.0625), ((4, 0.5, 256), 0.125)],
)
def test_the_bound_is_that_of_the_busiest_part(numbers, expected):
    assert sass.clocks(*numbers, capability=90) == expected


@pytest.mark.parametrize(
    ("registers", "shared", "expected"), [(128, 0, 16), (129, 0, 8), (32, 100 * 1024, 16)]
)
def test_warps_that_fit(registers, shared, expected):
    assert sass.resident_warps(registers, shared, 8, 90) == expected

"""A tile of h in a CPU's registers, by the instruction for 8-bit numbers of AVX-512: LLVM's code, for Numba's loops.

TALL rows of PANEL latents. `vnni.py` calls ``mark``, which compares a tile where it is, because to write h out and to
read it back costs a third of what multiplying costs, and ``halve``, which writes half of each h's bits. They are given
addresses, and ``words``, how many of 4 bytes a row has, and what :func:`_marks` and :func:`_halves` say:

    h = row_scales[row] · scales[latent] · (start[latent] + Σ q[row] · panel[latent]) + bias[latent]

``panel``: four bytes of each of its latents, then the next four. ``start``: −128 Σ panel[latent], because the
instruction takes the bytes of a row without their sign, so that they are 128 too large.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 16  # numbers of 32 bits in a register
TALL, PANEL = 4, 64  # 4 × 4 registers of sums: enough to hide a multiplication's latency; marks are words of 64 bits
INT, LONG, FLOAT, BIT = ir.IntType(32), ir.IntType(64), ir.FloatType(), ir.IntType(1)
INTS, FLOATS, HALVES = (ir.VectorType(kind, LANES) for kind in (INT, FLOAT, ir.IntType(16)))
Value: TypeAlias = Any  # of llvmlite, whose types pyright cannot tell
Builder: TypeAlias = Any
Tile: TypeAlias = list[list[Any]]  # of each row, its registers


def _read(builder: Builder, address: Value, kind: ir.Type, number: Value) -> Value:
    """The ``kind`` of that number from an address on."""
    value = builder.load(builder.gep(builder.inttoptr(address, kind.as_pointer()), [number]))
    value.align = 4
    return value


def _write(builder: Builder, value: Value, address: Value, number: int) -> None:
    place = builder.gep(builder.inttoptr(address, value.type.as_pointer()), [LONG(number)])
    builder.store(value, place).align = 2


def _everywhere(builder: Builder, value: Value, kind: ir.VectorType) -> Value:
    nothing = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(nothing, value, INT(0))
    return builder.shuffle_vector(first, nothing, ir.Constant(INTS, [0] * LANES))


def _multiplied(builder: Builder, q: Value, words: Value, panel: Value, start: Value) -> Tile:
    """start + Σ q · panel: LLVM keeps these places in registers."""
    parts = range(PANEL // LANES)
    kind = ir.FunctionType(INTS, [INTS] * 3)
    multiply = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512.vpdpbusd.512")
    first = [_read(builder, start, INTS, LONG(n)) for n in parts]
    sums = [[cgutils.alloca_once_value(builder, value) for value in first] for _ in range(TALL)]
    with cgutils.for_range(builder, words) as loop:
        place = builder.mul(loop.index, LONG(len(parts)))
        weights = [_read(builder, panel, INTS, builder.add(place, LONG(n))) for n in parts]
        for row, held in enumerate(sums):
            word = _read(builder, q, INT, builder.add(builder.mul(words, LONG(row)), loop.index))
            four = _everywhere(builder, word, INTS)
            for total, weight in zip(held, weights, strict=True):
                builder.store(builder.call(multiply, [builder.load(total), four, weight]), total)
    return sums


def _h(builder: Builder, sums: Tile, row_scales: Value, scales: Value, bias: Value) -> Tile:
    """h from the sums."""
    found = []
    for row, held in enumerate(sums):
        factor = _everywhere(builder, _read(builder, row_scales, FLOAT, LONG(row)), FLOATS)
        products = [builder.fmul(builder.sitofp(builder.load(total), FLOATS), factor) for total in held]
        scaled = [builder.fmul(p, _read(builder, scales, FLOATS, LONG(n))) for n, p in enumerate(products)]
        found.append([builder.fadd(p, _read(builder, bias, FLOATS, LONG(n))) for n, p in enumerate(scaled)])
    return found


def _on_a_tile(write: Callable[..., None]) -> Any:
    """What does ``write`` with a tile, and with two more numbers that it is given."""

    @intrinsic
    def on_a_tile(typing, q, words, panel, start, row_scales, scales, bias, one, other):
        def generate(context: Any, builder: Builder, signature: Any, args: tuple[Value, ...]) -> Value:
            write(builder, _h(builder, _multiplied(builder, *args[:4]), *args[4:7]), *args[7:])
            return context.get_dummy_value()

        return types.void(q, words, panel, start, row_scales, scales, bias, one, other), generate

    return on_a_tile


def _marks(builder: Builder, tile: Tile, low: Value, marks: Value) -> None:
    """To ``marks``, of each row PANEL bits in a word: which h exceed ``low`` (latent,); not a number does not."""
    for row, registers in enumerate(tile):
        word = LONG(0)
        for n, h in enumerate(registers):
            above = builder.fcmp_ordered(">", h, _read(builder, low, FLOATS, LONG(n)))
            bits = builder.zext(builder.bitcast(above, ir.IntType(LANES)), LONG)
            word = builder.or_(word, builder.shl(bits, LONG(n * LANES)))
        _write(builder, word, marks, row)


def _halves(builder: Builder, tile: Tile, latents: Value, halves: Value) -> None:
    """To ``halves``, whose rows have so many ``latents``: the upper half of each h's bits, which is a bfloat16."""
    for row, registers in enumerate(tile):
        address = builder.add(halves, builder.mul(latents, LONG(2 * row)))
        for n, h in enumerate(registers):
            bits = builder.lshr(builder.bitcast(h, INTS), ir.Constant(INTS, [16] * LANES))
            _write(builder, builder.trunc(bits, HALVES), address, n)


mark, halve = _on_a_tile(_marks), _on_a_tile(_halves)


def _lowest(typing: Any, word: types.Type) -> Any:
    """The place of the lowest bit of a 64-bit word that is 1; there must be one."""
    return types.int64(types.uint64), lambda _context, builder, _signature, args: builder.cttz(args[0], BIT(1))


lowest: Any = intrinsic(_lowest)

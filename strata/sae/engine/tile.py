"""Compute a tile of h in a CPU's registers, by AVX-512's instruction for 8-bit numbers: LLVM code for Numba's loops.

A tile is h of TALL rows and PANEL latents. `vnni.py` calls two functions. ``mark`` compares the h of a tile with a
bound while they are in registers, because to write them out and read them back would cost a third of the
multiplication. ``halve`` writes half of each h's bits. Their arguments are addresses of arrays, and ``words``, the
number of words of 4 bytes in a row; :func:`_marks` and :func:`_halves` explain the last two.

    h = row_scales[row] · scales[latent] · (start[latent] + Σ q[row] · panel[latent]) + bias[latent]

``panel`` holds four bytes of each of its latents, then the next four. ``start`` is −128 Σ panel[latent]: the
instruction takes the bytes of a row as unsigned, so they are stored 128 too large.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 16  # numbers of 32 bits in a register
TALL, PANEL = 4, 64  # 4 × 4 registers of sums hide the latency of a multiplication; marks of a row fill 64 bits
INT, LONG, FLOAT, BIT = ir.IntType(32), ir.IntType(64), ir.FloatType(), ir.IntType(1)
INTS, FLOATS, HALVES = (ir.VectorType(kind, LANES) for kind in (INT, FLOAT, ir.IntType(16)))
Value: TypeAlias = Any  # a value of llvmlite, whose types pyright cannot tell
Builder: TypeAlias = Any  # llvmlite's writer of instructions
Tile: TypeAlias = list[list[Any]]  # the registers of each row, TALL × PANEL / LANES


def _read(builder: Builder, address: Value, kind: ir.Type, number: Value) -> Value:
    """Read the value of type ``kind`` with that ``number`` in the array at ``address``."""
    value = builder.load(builder.gep(builder.inttoptr(address, kind.as_pointer()), [number]))
    value.align = 4
    return value


def _write(builder: Builder, value: Value, address: Value, number: int) -> None:
    """Write ``value`` to the place with that ``number`` in the array at ``address``."""
    place = builder.gep(builder.inttoptr(address, value.type.as_pointer()), [LONG(number)])
    builder.store(value, place).align = 2


def _everywhere(builder: Builder, value: Value, kind: ir.VectorType) -> Value:
    """Fill all lanes of a register with ``value``."""
    nothing = ir.Constant(kind, ir.Undefined)
    lane_0 = builder.insert_element(nothing, value, INT(0))
    return builder.shuffle_vector(lane_0, nothing, ir.Constant(INTS, [0] * LANES))


def _multiplied(builder: Builder, q: Value, words: Value, panel: Value, start: Value) -> Tile:
    """Compute start + Σ q · panel. The sums are variables on the stack, which LLVM keeps in registers."""
    parts = range(PANEL // LANES)
    kind = ir.FunctionType(INTS, [INTS] * 3)
    multiply = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512.vpdpbusd.512")
    initial = [_read(builder, start, INTS, LONG(n)) for n in parts]
    sums = [[cgutils.alloca_once_value(builder, value) for value in initial] for _ in range(TALL)]

    # Each word of a row is multiplied with the same word of all latents of the panel.
    with cgutils.for_range(builder, words) as loop:
        place = builder.mul(loop.index, LONG(len(parts)))
        weights = [_read(builder, panel, INTS, builder.add(place, LONG(n))) for n in parts]
        for row, totals in enumerate(sums):
            word = _read(builder, q, INT, builder.add(builder.mul(words, LONG(row)), loop.index))
            four = _everywhere(builder, word, INTS)
            for total, weight in zip(totals, weights, strict=True):
                builder.store(builder.call(multiply, [builder.load(total), four, weight]), total)
    return sums


def _h(builder: Builder, sums: Tile, row_scales: Value, scales: Value, bias: Value) -> Tile:
    """Compute h from the sums."""
    tile = []
    for row, totals in enumerate(sums):
        factor = _everywhere(builder, _read(builder, row_scales, FLOAT, LONG(row)), FLOATS)
        products = [builder.fmul(builder.sitofp(builder.load(total), FLOATS), factor) for total in totals]
        scaled = [builder.fmul(p, _read(builder, scales, FLOATS, LONG(n))) for n, p in enumerate(products)]
        tile.append([builder.fadd(p, _read(builder, bias, FLOATS, LONG(n))) for n, p in enumerate(scaled)])
    return tile


def _on_a_tile(write: Callable[..., None]) -> Any:
    """Return an intrinsic that computes a tile and passes it to ``write``, with the intrinsic's last two arguments."""

    @intrinsic
    def on_a_tile(typing, q, words, panel, start, row_scales, scales, bias, first_extra, second_extra):
        def generate(context: Any, builder: Builder, signature: Any, args: tuple[Value, ...]) -> Value:
            write(builder, _h(builder, _multiplied(builder, *args[:4]), *args[4:7]), *args[7:])
            return context.get_dummy_value()

        return types.void(q, words, panel, start, row_scales, scales, bias, first_extra, second_extra), generate

    return on_a_tile


def _marks(builder: Builder, tile: Tile, low: Value, marks: Value) -> None:
    """Write a word of PANEL bits for each row to ``marks``: which h exceed ``low`` (latent,). NaN does not."""
    for row, registers in enumerate(tile):
        word = LONG(0)
        for n, h in enumerate(registers):
            above = builder.fcmp_ordered(">", h, _read(builder, low, FLOATS, LONG(n)))
            bits = builder.zext(builder.bitcast(above, ir.IntType(LANES)), LONG)
            word = builder.or_(word, builder.shl(bits, LONG(n * LANES)))
        _write(builder, word, marks, row)


def _halves(builder: Builder, tile: Tile, latents: Value, halves: Value) -> None:
    """Write the upper half of each h's bits, a bfloat16, to ``halves``, whose rows have so many ``latents``."""
    for row, registers in enumerate(tile):
        address = builder.add(halves, builder.mul(latents, LONG(2 * row)))
        for n, h in enumerate(registers):
            bits = builder.lshr(builder.bitcast(h, INTS), ir.Constant(INTS, [16] * LANES))
            _write(builder, builder.trunc(bits, HALVES), address, n)


mark, halve = _on_a_tile(_marks), _on_a_tile(_halves)


def _lowest(typing: Any, word: types.Type) -> Any:
    """Return the place of the lowest bit of a 64-bit word that is 1. There must be one."""
    return types.int64(types.uint64), lambda _context, builder, _signature, args: builder.cttz(args[0], BIT(1))


lowest: Any = intrinsic(_lowest)

"""Exercises of chapter 11, MXFP4: bytes counted, a scale chosen, four codes decoded wrongly."""

import math

from gptoss_lite.exercises.exercise import Exercise


def packed_bytes(n_rows: int, n_columns: int) -> int:
    """Return the bytes that a matrix [n_rows, n_columns] takes in MXFP4, scales included.

    Each row is cut into blocks of 32. A row that does not fill its last block is padded with zeros,
    which are stored as well.
    """
    n_blocks = n_rows * math.ceil(n_columns / 32)
    return 17 * n_blocks


def _no_scales(n_rows: int, n_columns: int) -> int:
    return 16 * n_rows * math.ceil(n_columns / 32)


def _blocks_across_rows(n_rows: int, n_columns: int) -> int:
    return 17 * math.ceil(n_rows * n_columns / 32)


def _not_padded(n_rows: int, n_columns: int) -> int:
    return 17 * n_rows * (n_columns // 32)


def scale_byte(block: list[float]) -> int:
    """Return the scale byte of a block of weights, by the rule of the specification.

    The scale is the power of two that brings the largest magnitude into [4, 8). Its byte is the
    exponent plus 127, and stays within 0 to 254. A block of zeros has the scale 1.
    """
    largest = max(abs(weight) for weight in block)
    if largest == 0:
        return 127
    exponent = math.frexp(largest)[1] - 1 - 2  # frexp: 0.5 <= mantissa < 1
    return min(max(exponent + 127, 0), 254)


def _signed_largest(block: list[float]) -> int:
    largest = max(block)
    return scale_byte([largest]) if largest > 0 else 127


def _up_to_six(block: list[float]) -> int:
    largest = max(abs(weight) for weight in block)
    return 127 if largest == 0 else min(max(math.ceil(math.log2(largest / 6)) + 127, 0), 254)


def _no_limits(block: list[float]) -> int:
    largest = max(abs(weight) for weight in block)
    return 127 if largest == 0 else math.frexp(largest)[1] - 3 + 127


def _rounded_log(block: list[float]) -> int:
    largest = max(abs(weight) for weight in block)
    return 127 if largest == 0 else min(max(round(math.log2(largest)) - 2 + 127, 0), 254)


def number(code: int) -> float:
    """Return the number that a code from 0 to 15 stands for.

    Bit 3 is the sign, bits 2 and 1 the exponent with bias 1, bit 0 the mantissa.
    """
    sign = -1.0 if code & 8 else 1.0
    exponent, mantissa = code >> 1 & 3, code & 1
    if exponent == 0:
        return sign * mantissa / 2
    return sign * 2.0 ** (exponent - 1) * (1 + mantissa / 2)


def broken_number(code: int) -> float:
    """Return the number that a code from 0 to 15 stands for.

    Bit 3 is the sign, bits 2 and 1 the exponent with bias 1, bit 0 the mantissa.
    """
    sign = -1.0 if code & 8 else 1.0
    exponent, mantissa = code >> 1 & 3, code & 1
    return sign * 2.0 ** (exponent - 1) * (1 + mantissa / 2)


def _flushed(code: int) -> float:
    return 0.0 if code & 7 < 2 else number(code)


def _without_sign(code: int) -> float:
    return abs(number(code))


EXERCISES = (
    Exercise(
        id="ch11.ex1",
        title="Bytes of a matrix",
        minutes=5,
        level="easy",
        solution=packed_bytes,
        cases=((1, 32), (5_760, 2_880)),
        hidden=((3, 33), (2_880, 2_880), (7, 31), (10, 100)),
        hints=(
            "How many blocks has one row? Blocks never reach into the next row.",
            "math.ceil(n_columns / 32) blocks a row, and 17 bytes a block.",
        ),
        wrong=(_no_scales, _blocks_across_rows, _not_padded),
    ),
    Exercise(
        id="ch11.ex2",
        title="Choose the scale",
        minutes=10,
        level="implement",
        solution=scale_byte,
        cases=(([6.0, -1.0],), ([0.1, -8.0, 3.0],), ([0.0, 0.0],)),
        hidden=(
            ([7.99],),
            ([2.0**-140],),
            ([1e300],),
            ([-0.3, 0.2],),
            ([4.0],),
            ([-5.0, -6.5],),
            ([1 / 3] * 32,),
        ),
        hints=(
            "floor(log2(largest)) is the exponent of the largest; in [4, 8) it is 2.",
            "math.frexp(largest)[1] - 1 is that floor, without rounding. Subtract 2, add 127, and "
            "keep it within 0 and 254.",
        ),
        wrong=(_signed_largest, _up_to_six, _no_limits, _rounded_log),
    ),
    Exercise(
        id="ch11.ex3",
        title="Right for twelve codes of sixteen",
        minutes=10,
        level="find the bug",
        solution=number,
        stub=broken_number,
        cases=((7,), (13,), (1,)),
        hidden=((0,), (2,), (9,), (15,), (8,), (3,)),
        hints=(
            "Which number has the exponent bits 00 and the mantissa bit 0? What should it be?",
            "With exponent bits 00 there is no leading 1: the number is half the mantissa bit.",
        ),
        wrong=(_flushed, _without_sign),
    ),
)

"""Wrong on purpose: mistakes that a test of the model must see, or it proves nothing.

`catalog` lists them, `stand_ins` holds the wrong functions, `hostile` the tiny models in which they
show, `measure` plants one and says how far it moves the logits, and `rooms` shows them in the book.
The model's own code knows nothing of them. `python -m gptoss_lite.mutants` prints all damages.
"""

from gptoss_lite.mutants.catalog import EXHIBITS, MUTANTS, OTHERS, PARTS, Mutant, mutant
from gptoss_lite.mutants.measure import (
    LAZY,
    LAZY_TOLERANCE,
    ONE_PASS,
    STRICT,
    Regime,
    caught,
    damage,
    missed,
    planted,
    table,
)
from gptoss_lite.mutants.rooms import moved, room, storage

__all__ = [
    "EXHIBITS",
    "LAZY",
    "LAZY_TOLERANCE",
    "MUTANTS",
    "ONE_PASS",
    "OTHERS",
    "PARTS",
    "STRICT",
    "Mutant",
    "Regime",
    "caught",
    "damage",
    "missed",
    "moved",
    "mutant",
    "planted",
    "room",
    "storage",
    "table",
]

"""The type checker that tests run the package under (see `--jaxtyping-packages`)."""

from beartype import BeartypeConf, beartype

# An int is welcome where a float is asked for, as PEP 484 says and type checkers agree.
checker = beartype(conf=BeartypeConf(is_pep484_tower=True))

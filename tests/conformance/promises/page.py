"""The tables as docs/router.md has them: `python -m tests.conformance.promises.page` prints what belongs there."""

from __future__ import annotations

import sys

from tests.conformance.promises.receipts import ENDS, REFUSALS, WITHOUT
from tests.conformance.promises.row import table
from tests.conformance.promises.upstreams import WAYS

_STOPPED = "stopped by"
_TEST = "test, below `tests/`"


def receipts() -> str:
    """The tables about receipts."""
    return "\n".join(
        (
            "### Refusals\n",
            table(("refused, because", "reason", _TEST), REFUSALS),
            "### Abnormal ends\n",
            table(("what happens", "receipt or amendment says", _TEST), ENDS),
            "### Refusals that are counted instead\n",
            table(("refused, because", "reason", _TEST), WITHOUT),
        )
    )


def upstreams() -> str:
    """The tables about verified upstreams."""
    return "\n".join(f"### {name}\n\n{table(('way', _STOPPED, _TEST), rows)}" for name, rows in WAYS)


if __name__ == "__main__":
    sys.stdout.write(f"{receipts()}\n{upstreams()}")

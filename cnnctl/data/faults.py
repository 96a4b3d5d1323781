"""What is wrong with the files of a data set, told at once when all were read."""

from __future__ import annotations

from collections.abc import Sequence

from cnnctl.errors import Exit, UserError

KEPT = 10_000  # faults of a kind that are named; the others are counted

Row = tuple[str, str | None, str, str | None]  # file, record, problem, advice


class Faulty(UserError):
    """Several faults, found in one pass: the first is the message.

    Attributes:
        faults: sentences on all, with their files; the first ``KEPT``.
        count: how many there are.
    """

    faults: tuple[str, ...] = ()
    count: int = 0


class Faults:
    """A list of faults that grows while the files are read."""

    def __init__(self) -> None:
        self.count = 0
        self._rows: list[Row] = []

    def add(
        self, file: str, problem: str, record: str | None = None, advice: str | None = None
    ) -> None:
        self.count += 1
        if len(self._rows) < KEPT:
            self._rows.append((file, record, problem, advice))

    def tell(self, advice: str) -> None:
        """Raise the first with the number of the others, if there is one.

        Args:
            advice: where the fault has none of its own.

        Raises:
            Faulty: there is one at least (code 3).
        """
        if self.count:
            raise faulty(self._rows, self.count, advice)


def faulty(rows: Sequence[Row], count: int, advice: str) -> Faulty:
    """The exception that says the first of ``count`` faults and holds all ``rows``."""
    file, record, problem, own = rows[0]
    files = len({row[0] for row in rows})
    there = f" in {files:,} files" if files > 1 else ""
    others = "1 more fault" if count == 2 else f"{count - 1:,} more faults"
    more = f" (and {others}{there})" if count > 1 else ""
    error = Faulty(problem + more, file=file, record=record, advice=own or advice, code=Exit.DATA)
    error.faults = tuple(": ".join(filter(None, row[:3])) for row in rows)
    error.count = count
    return error

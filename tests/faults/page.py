"""Write the table into the page: python -m tests.faults.page."""

from __future__ import annotations

from tests.faults.plant import HERE, write_table

MARK = "<!-- the table, written by `python -m tests.faults.page` -->\n"


def write_page() -> None:
    """Put the table in the place of the old one."""
    path = HERE / "README.md"
    head, mark, _ = path.read_text(encoding="utf-8").partition(MARK)
    path.write_text(f"{head}{mark or MARK}\n{write_table()}\n", encoding="utf-8")


if __name__ == "__main__":
    write_page()

"""Tables in Markdown."""

from ebu.run.markdown import table


def test_what_a_cell_holds_stays_in_it() -> None:
    found = table(["run", "a|b"], iter([("x|y\nz", 3), ("", None)]))
    assert found.splitlines() == [
        "| run | a\\|b |",
        "| --- | --- |",
        "| x\\|y z | 3 |",
        "|  | None |",
    ]

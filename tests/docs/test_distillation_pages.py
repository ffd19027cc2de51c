"""The figures on distillation are those of the committed reports, by today's statistics."""

from agents.distillation.report.text import report_text
from docs.results.distillation_pages import DATA, EXAMPLE, PAGE, page, read_report, with_figures


def test_every_page_is_what_its_data_give() -> None:
    reports = {}
    for path in sorted(DATA.glob("**/report.json")):
        reports[str(path.parent.relative_to(DATA))] = report = read_report(path)
        assert (path.parent / "report.md").read_text() == report_text(report), path
    assert PAGE.read_text() == page(reports)
    example = EXAMPLE.read_text()
    assert with_figures(example, reports["cartpole"]) == example

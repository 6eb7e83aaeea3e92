"""The report: one self-contained HTML page about a tokenizer and its prior, and all its numbers in metrics.json."""

from flextok.evaluate.report.write import ReportInputs, ReportResult, write_report

__all__ = ["ReportInputs", "ReportResult", "write_report"]

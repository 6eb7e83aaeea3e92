"""Metrics, one register for length policies, evaluation, report and documents. A new metric is one file here."""

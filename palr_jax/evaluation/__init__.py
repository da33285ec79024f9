"""Evaluation: metrics over ranks, intervals, reports."""

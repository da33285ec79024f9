"""Paths of the checkout and of the data next to it."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Data and models for measurements; tests that need them are skipped if they are absent.
SHARED = ROOT.parent / "shared"

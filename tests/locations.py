"""Where the checkout and the data beside it lie."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Data and models for measuring; tests that need them are skipped where they are absent.
SHARED = ROOT.parent / "shared"

"""A self-contained HTML page of sections.

It needs nothing from outside. Its script only sorts tables, and its policy admits no other.
"""

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files

from palr_jax.evaluation.html_tables import escaped


def page(title: str, sections: Sequence[tuple[str, str]]) -> str:
    """The page as HTML.

    Args:
        title: the title, as text.
        sections: heading as text, and content as HTML.
    """
    links = "".join(
        f"<li><a href='#part{index}'>{escaped(heading)}</a></li>"
        for index, (heading, _) in enumerate(sections)
    )
    parts = "".join(
        f"<section aria-labelledby='part{index}'><h2 id='part{index}'>{escaped(heading)}</h2>"
        f"{content}</section>"
        for index, (heading, content) in enumerate(sections)
    )
    style, script = _page_file("report.css"), _page_file("report.js")
    mark = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{mark}'"
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{escaped(title)}</title><style>{style}</style></head><body>"
        f"<header><h1>{escaped(title)}</h1>"
        f"<nav aria-label='Contents'><ul>{links}</ul></nav></header>"
        f"<main>{parts}</main><p id='said' class='hidden' aria-live='polite'></p>"
        f"<script>{script}</script></body></html>\n"
    )


def _page_file(name: str) -> str:
    return (files("palr_jax.evaluation") / "page" / name).read_text("utf-8")

"""A small table of interactions and one of items, which tests change."""

from pathlib import Path

LOG = "user,item,timestamp\nann,007,5\nbob,1,3\nann,1,3\n"
ITEMS = 'item,title,categories\n1,"Nails, red",Hair|Nails\n007,"5"" pot",\n'


def rewrite(path: str | None, text: str) -> None:
    assert path is not None
    Path(path).write_text(text)

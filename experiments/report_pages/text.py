"""Markdown of the generated pages: paragraphs, links and sections."""

from collections.abc import Iterable
from collections.abc import Sequence
import textwrap

from etils import epath

_RESULTS = "../results"  # as seen from docs/
_WIDTH = 88


def paragraph(*sentences: str) -> str:
  """Joins sentences and wraps them; empty sentences are left out.

  >>> paragraph("One.", "", "Two.")
  'One. Two.'
  """
  return _wrap(" ".join(filter(None, sentences)))


def bullets(items: Iterable[str]) -> str:
  """Formats a list.

  >>> print(bullets(["a", "b"]))
  - a
  - b
  """
  return "\n".join(_wrap(f"- {item}", indent="  ") for item in items)


def section(title: str, *parts: str, level: int = 2) -> str:
  r"""Formats a section of paragraphs and tables; "" if all of them are empty.

  >>> section("Title", "", "Text.")
  '## Title\n\nText.'
  """
  parts = tuple(filter(None, parts))
  return "\n\n".join([f"{'#' * level} {title}", *parts]) if parts else ""


def page(title: str, *sections: str) -> str:
  """Formats a page that is not edited by hand."""
  mark = "<!-- Written by python -m experiments.report. Do not edit. -->"
  return "\n\n".join([f"# {title}", mark, *filter(None, sections)]) + "\n"


def link(path: str, label: str = "") -> str:
  """Links to a file of the results folder.

  >>> link("a/b.json")
  '[a/b.json](../results/a/b.json)'
  """
  return f"[{label or path}]({_RESULTS}/{path})"


def links(paths: Iterable[str]) -> str:
  """Lists the JSON files of a section, as links in the order of their names."""
  unique = sorted(set(paths))
  return _wrap(f"JSON: {', '.join(map(link, unique))}.") if unique else ""


def image(folder: epath.Path, path: str, caption: str) -> str:
  """Embeds a figure of the results folder; "" if the folder does not have it."""
  return f"![{caption}]({_RESULTS}/{path})" if (folder / path).exists() else ""


def listed(words: Sequence[str]) -> str:
  """Joins words as a sentence does.

  >>> listed(["a"]), listed(["a", "b"]), listed(["a", "b", "c"])
  ('a', 'a and b', 'a, b and c')
  """
  if len(words) < 2:
    return "".join(words)
  return f"{', '.join(words[:-1])} and {words[-1]}"


def _wrap(text: str, indent: str = "") -> str:
  return textwrap.fill(
    text,
    _WIDTH,
    subsequent_indent=indent,
    break_long_words=False,
    break_on_hyphens=False,
  )

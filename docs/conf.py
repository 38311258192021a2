"""Configuration of the documentation; build it with `make docs`."""

import os
import re
import sys
import warnings

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, _ROOT)
# The tutorials run in their own processes, which must find `experiments`, too.
os.environ["PYTHONPATH"] = os.pathsep.join(
  filter(None, (_ROOT, os.environ.get("PYTHONPATH")))
)
# They compile many programs and run each for a moment: a quick compiler is better than a
# thorough one, as in the tests.
os.environ.setdefault(
  "XLA_FLAGS",
  "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false",
)

from sphinx.domains.python import PyObject  # noqa: E402
from sphinx.util import logging  # noqa: E402

import tca_jax  # noqa: E402

warnings.filterwarnings("ignore", category=DeprecationWarning)

project = "tca_jax"
author = "the tca_jax authors"
copyright = "the tca_jax authors, Apache-2.0"
version = release = tca_jax.__version__

extensions = [
  "myst_nb",
  "sphinx.ext.autodoc",
  "sphinx.ext.autosummary",
  "sphinx.ext.mathjax",
  "sphinx.ext.napoleon",
]
exclude_patterns = ["_build"]
highlight_language = "text"

# Text and notebooks.
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_execution_timeout = 600
nb_merge_streams = True

# The reference.
autodoc_default_options = {
  # Members of every chex.dataclass, and of Flax modules.
  "exclude-members": "items, keys, values, setup, dtype",
}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autosummary_generate = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False
napoleon_use_rtype = False
default_role = "code"

html_theme = "sphinx_book_theme"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_title = f"tca_jax {release}"
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
  "home_page_in_toc": False,
  "navbar_persistent": [],
  "show_navbar_depth": 1,
  "show_toc_level": 2,
  "use_download_button": False,
  "use_fullscreen_button": False,
}


def _to_rst(app, what, name, obj, options, lines: list[str]) -> None:
  """Adapts a docstring, which is not written in RST.

  Outside of code, `*` and `|` are escaped, and so is the period of a line such as
  "b.", which would start a list. An indented block after a paragraph that ends with a
  colon becomes a code block.
  """
  del app, what, name, obj, options
  code_indent = None  # the indent of the paragraph before the code block
  for i, line in enumerate(lines):
    indent = len(line) - len(line.lstrip())
    if code_indent is not None:
      if not line.strip() or indent > code_indent:
        continue
      code_indent = None
    if line.lstrip().startswith((">>>", "...")):
      continue
    parts = line.split("`")
    parts[::2] = [re.sub(r"([*|])", r"\\\1", part) for part in parts[::2]]
    text = "`".join(parts).replace("Sec. ", "Section ")  # no end of a sentence
    lines[i] = re.sub(r"(^|: +)([A-Za-z])\.$", r"\1\2\\.", text)
    if line.endswith(":") and lines[i + 1 : i + 2] == [""]:
      block = next(filter(None, lines[i + 1 :]), "")
      if len(block) - len(block.lstrip()) > indent:
        lines[i] += ":"
        code_indent = indent


def _shorten_signature(app, what, name, obj, options, signature, returns):
  """Drops the arguments that Flax adds to every module."""
  del app, what, name, obj, options
  if signature:
    signature = re.sub(r", parent: .*?, name: str \| None = None", "", signature)
    signature = signature.replace("<class 'jax.numpy.float32'>", "jax.numpy.float32")
  return signature, returns


def _check_reference(app, env) -> None:
  """Warns of public names that the reference does not describe."""
  del app
  described = env.domains["py"].objects
  for module in tca_jax.__all__:
    for name in getattr(getattr(tca_jax, module), "__all__", ()):
      if f"tca_jax.{module}.{name}" not in described:
        logging.getLogger(__name__).warning("no reference of %s.%s", module, name)


def setup(app) -> None:
  app.connect("env-check-consistency", _check_reference)
  for field in PyObject.doc_field_types:
    if field.name == "variable":
      field.label = "Attributes"
  app.connect("autodoc-process-docstring", _to_rst, priority=100)
  app.connect("autodoc-process-signature", _shorten_signature)

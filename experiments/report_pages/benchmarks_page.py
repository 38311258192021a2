"""docs/benchmarks.md: the speed of the methods."""

from collections.abc import Callable

from experiments.common import tables
from experiments.report_pages import growing
from experiments.report_pages import ratios
from experiments.report_pages import runs
from experiments.report_pages import sharding
from experiments.report_pages import speed
from experiments.report_pages import text
from experiments.report_pages import unequal
from experiments.report_pages.runs import Results

Rows = list[ratios.Row]

_GPU = "_gpu"  # ends the names of the files that were measured on a GPU
_FOLDER = "benchmarks/"
_READING = (
  "The tables give microseconds per query for reading one context whose keys and values"
  " are already computed. Full attention is the fastest of several implementations."
  " Perceiver IO reads as many latents, and FAISS HNSW finds as many tokens, as TCA reads"
  " nodes. The gather floor is one plain gather of all rows that a walk reads."
)
_BUILDING = (
  "The table gives milliseconds for one context. Ordering the points means building the"
  " k-d tree of random 2-D points. `build_tree` uses NumPy outside `jax.jit` on a CPU, and"
  " XLA otherwise; it is compared with other libraries. When the GPU was measured, it"
  " compiled in every call outside `jax.jit`; now it compiles once per shape. Aggregation"
  " and caching compute the keys and values of all nodes; they are compared with their"
  " matrix products only. The last column is the number of queries after which the build"
  " (order, aggregate and cache) has saved its time against full attention (break-even)."
)
_TRAINING = (
  "The table gives milliseconds for one training step. GP regression (`gp`) is the mean"
  " over the shapes of its batches, weighted by how often they occur; `images` are MNIST"
  " digits. The policy either shares the projections of the attention, as in the paper,"
  " or has its own, which is the default of our experiments."
)
_MAPS = (
  "The shipped models and the baselines predict the same held-out points of a real map"
  " from the same context, in turn. A memory, a fit or a triangulation is made before."
  " TCA follows one path, Relative TCA several, and Cross Attention reads all points."
)
_SWEEP = (
  "Each row changes the width, the number of heads, the branch factor or the data type of"
  " the first row. Build is aggregation and caching; the other columns are microseconds"
  " per query of a read."
)


def make(results: Results) -> str:
  """Writes the text of the page."""
  files = [file for file in results.under(_FOLDER) if isinstance(file.content, list)]
  return text.page(
    "Benchmarks",
    text.paragraph(
      "All numbers of this page are from JSON files in"
      " `results/benchmarks/`. `python -m experiments.report`"
      " writes the page and its figure again.",
      "Machines differ and are noisy, so compare the methods within one table.",
      "Reads, builds and the sweep use random keys, values and queries.",
    )
    if files
    else "",
    _benchmark(results, "Reading", "retrieval", _READING, speed.reading),
    _benchmark(results, "Building a memory", "build", _BUILDING, speed.building),
    _benchmark(results, "Training steps", "training", _TRAINING, speed.training),
    _benchmark(results, "Whole maps", "maps", _MAPS, speed.maps),
    _benchmark(results, "Sweep over shapes", "sweep", _SWEEP, speed.sweep),
    _benchmark(
      results, "Contexts that grow", "growth", growing.INTRODUCTION, growing.parts
    ),
    _benchmark(
      results,
      "Contexts that are split over devices",
      "sharding",
      sharding.INTRODUCTION,
      sharding.parts,
    ),
    _benchmark(
      results,
      "Many contexts of unequal size",
      "contexts",
      unequal.INTRODUCTION,
      unequal.parts,
    ),
    _commands(),
    _hardware(files),
  )


def rows_of(results: Results, name: str) -> Rows:
  """The rows of a benchmark's main file; [] if it was not run."""
  return results.content(f"{_FOLDER}{name}.json") or []


def _benchmark(
  results: Results,
  title: str,
  name: str,
  introduction: str,
  make_parts: Callable[[Rows], list[str]],
) -> str:
  """A section of one benchmark: on the CPU, in other runs there, and on a GPU."""
  files = {
    file.path.removeprefix(_FOLDER).removesuffix(".json"): file
    for file in results.under(f"{_FOLDER}{name}")
  }
  if not files:
    return ""
  parts = [text.paragraph(introduction)]
  for stem, file in sorted(files.items()):
    if stem == name:
      heading = ""
    elif stem.endswith(_GPU):
      heading = f"### On a GPU: {file.content[0]['device']}"
    else:
      heading = f"### Another run: `{stem}.json`"
    figure, caption = f"{_FOLDER}{stem}.png", "Time per query against context size"
    parts += [heading, *make_parts(file.content), text.links([file.path])]
    parts.append(text.image(results.folder, figure, caption))
  return text.section(title, *parts)


def _commands() -> str:
  return text.section(
    "Run them yourself",
    "```\n"
    "pip install -r requirements-bench.txt\n"
    "export GLIBC_TUNABLES=glibc.malloc.hugetlb=1  # Linux on a CPU: huge pages\n"
    "python -m benchmarks.retrieval --num_tokens=1024,16384 --num_queries=1,256\n"
    "python -m benchmarks.build --num_tokens=16384,1048576\n"
    "python -m benchmarks.training\n"
    "python -m benchmarks.maps\n"
    "python -m benchmarks.sweep\n"
    "python -m benchmarks.growth --repeats=2\n"
    "XLA_FLAGS=--xla_force_host_platform_device_count=8"
    " python -m benchmarks.sharding --repeats=3\n"
    "python -m benchmarks.contexts\n"
    "```",
    text.paragraph(
      "Each command prints its tables and writes JSON to `--out`, by default"
      " `runs/benchmarks`; `--help` lists the options. FAISS, jaxkd and PyTorch are"
      " timed if they are installed. To show your numbers on this page, copy the JSON"
      f" to `results/benchmarks/`, as `NAME{_GPU}.json` if it was measured on a GPU, and"
      " run `python -m experiments.report`."
    ),
  )


def _hardware(files: list[runs.File]) -> str:
  if not files:
    return ""
  lines = []
  for file in files:
    row = file.content[0]
    versions = row.get("versions", {})
    lines.append(
      [
        text.link(file.path, file.path.removeprefix(_FOLDER)),
        row["device"],
        str(row.get("cores") or "not recorded"),
        ", ".join(f"{name} {x}" for name, x in versions.items()) or "not recorded",
        row.get("GLIBC_TUNABLES") or "not set",
        f"`{row['command']}`",
        (row.get("commit") or "not recorded")[:8],
      ]
    )
  header = ["file", "device", "CPU cores", "versions", "GLIBC_TUNABLES", "command"]
  commits = {file.content[0].get("commit") for file in files}
  return text.section(
    "Hardware and versions",
    text.paragraph(
      "The files are from different commits, so compare numbers within one file only."
      if len(commits) > 1
      else "",
      "The table gives what each file records about its run. The commands use the"
      " default shape unless they name another: see `--width`, `--num_heads`,"
      " `--branch_factor` and `--dtype`.",
    ),
    tables.markdown([*header, "commit"], lines),
  )

"""Tables of docs/benchmarks.md, from the rows that the benchmarks write."""

import typing

from experiments.common import tables
from experiments.common.systems import TITLES
from experiments.report_pages import ratios
from experiments.report_pages import text

Rows = list[ratios.Row]

_SIZES = [2**i for i in (7, 10, 14, 17, 20)]  # context sizes in the table of reads
_SMALL, _LARGE = 2**10, 2**20  # context sizes whose times are compared
_FULL = {
  "full_xla": "XLA in chunks of the context",
  "full_xla_whole": "XLA without chunks",
  "full_jax_nn": "`jax.nn.dot_product_attention`",
  "full_torch": "PyTorch's `scaled_dot_product_attention`",
  "full_torch_1_thread": "the same with one thread",
}


def _rounded(x: float | None) -> str:
  if x is None:
    return ""
  if x < 0.1:
    return f"{x:.3f}"
  return f"{x:,.0f}" if x >= 1000 else f"{x:.1f}"


def _size(n: int) -> str:
  """Formats a context size: a power of two as such.

  >>> _size(1024), _size(1000)
  ('2^10', '1,000')
  """
  return f"2^{n.bit_length() - 1}" if n & (n - 1) == 0 else f"{n:,}"


def _table(header: list[str], lines: list[list[str]]) -> str:
  """A table without the columns that are empty in all lines."""
  kept = [i for i in range(len(header)) if any(line[i] for line in lines)]
  return tables.markdown(
    [header[i] for i in kept], [[line[i] for i in kept] for line in lines]
  )


def reading(rows: Rows) -> list[str]:
  """The times of reads, and the context from which TCA is faster."""
  lines, ahead = [], []
  for m in sorted({row["num_queries"] for row in rows}):
    selected = [row for row in rows if row["num_queries"] == m]
    full, tca = ratios.fastest_full(selected), ratios.times(selected, "tca")
    others = [
      ratios.times(selected, name)
      for name in ("perceiver", "faiss_hnsw", "gather_floor")
    ]
    index_ms = {
      row["num_tokens"]: 1e3 * row["build_seconds"]
      for row in selected
      if row["system"] == "faiss_hnsw"
    }
    for n in [n for n in _SIZES if n in tca] or sorted(tca):
      ratio = f"{full[n] / tca[n]:,.1f}x" if n in full else ""
      cells = [f"{m:,}", _size(n), _rounded(tca[n]), _rounded(full.get(n)), ratio]
      cells += [_rounded(other.get(n)) for other in others]
      lines.append([*cells, _rounded(index_ms.get(n))])
    crossover = ratios.crossover(selected, m)
    both = {_SMALL, _LARGE} <= set(tca)
    growth = f"{tca[_LARGE] / tca[_SMALL]:.1f}x" if both else ""
    size = f"{crossover:,}" if crossover else "not in this run"
    ahead.append([f"{m:,}", size, growth])
  names = {row["system"] for row in rows}
  routes = [title for name, title in _FULL.items() if name in names]
  header = ["queries", "tokens", TITLES["tca"], "full attention", "full / TCA"]
  header += [TITLES["perceiver"], "FAISS HNSW", "gather floor"]
  header += ["index of FAISS HNSW: build, ms"]
  return [
    text.paragraph(f"Full attention was measured with {text.listed(routes)}."),
    _table(header, lines),
    text.paragraph(
      "The next table gives the smallest context from which TCA is faster than every"
      " implementation of full attention. It also gives the ratio of TCA's times at"
      f" {_size(_LARGE)} and at {_size(_SMALL)} tokens."
    ),
    tables.markdown(
      [
        "queries",
        "TCA is faster from, tokens",
        f"TCA, {_size(_LARGE)} / {_size(_SMALL)} tokens",
      ],
      ahead,
    ),
  ]


def building(rows: Rows) -> list[str]:
  """The times of building a memory, part by part."""
  names = {
    "order_host": "order, outside jit",
    "order_traced": "order, inside jit",
    "order_ckdtree": "SciPy cKDTree",
    "order_jaxkd": "jaxkd",
    "aggregate_and_cache": "aggregate and cache",
    "matrix_products": "matrix products only",
  }
  lines = []
  for n in sorted({row["num_tokens"] for row in rows}):
    by_name = {row["system"]: row for row in rows if row["num_tokens"] == n}
    built, products = by_name["aggregate_and_cache"], by_name["matrix_products"]
    pays = built.get("pays_after_queries")
    peak = sum(built[f"{part}_bytes"] for part in ("temp", "output", "argument"))
    lines.append(
      [
        _size(n),
        *(_rounded(by_name[name]["ms"]) if name in by_name else "" for name in names),
        f"{products['ms'] / built['ms']:.0%}",
        f"{peak / built['node_bytes']:.1f}x",
        f"{pays:,.0f}" if pays else "never",
      ]
    )
  counts = text.listed(sorted({f"{row['num_queries']:,}" for row in rows}))
  header = ["tokens", *names.values(), "products / aggregate", "peak memory / nodes"]
  return [
    text.paragraph(f"The last column is for {counts} queries at a time."),
    _table([*header, "break-even, queries"], lines),
  ]


def training(rows: Rows) -> list[str]:
  """The times of training steps, and of the parts of TCA's step."""
  names = {
    "tca_shared": "TCA, shared policy",
    "tca": "TCA, own policy",
    "ca": TITLES["ca"],
    "perceiver": TITLES["perceiver"],
  }
  trees = ("tca_shared", "tca")
  lines, parts = [], []
  for task in dict.fromkeys(row["task"] for row in rows):
    by_name = {row["system"]: row for row in rows if row["task"] == task}
    config = by_name["ca"]["config"]
    ms = {name: by_name[name]["ms"] for name in names if name in by_name}
    length = config.get("sequence_length")
    cells = [f"{task}, T = {length}" if length else task]
    cells += [str(config["batch_size"]), str(config["num_layers"])]
    cells += [_rounded(ms.get(name)) for name in names]
    cells += [f"{ms[name] / ms['ca']:.2f}x" if name in ms else "" for name in trees]
    lines.append(cells)
    for name, row in by_name.items():
      if name.startswith("part/"):
        part = name.removeprefix("part/").replace("_", " ")
        parts.append([task, part, _rounded(row["ms"])])
  header = ["task", "batch size", "encoder layers", *names.values()]
  header += [f"{names[name]} / {names['ca']}" for name in trees]
  return [
    _table(header, lines),
    text.paragraph("Gradients of single parts of TCA's step, with a shared policy:")
    if parts
    else "",
    tables.markdown(["task", "part", "ms"], parts) if parts else "",
  ]


def sweep(rows: Rows) -> list[str]:
  """The times of builds and reads over shapes."""
  keys = ("num_tokens", "width", "num_heads", "branch_factor", "dtype")
  counts = sorted({row["num_queries"] for row in rows if "num_queries" in row})
  by_shape: dict[tuple, dict[typing.Any, str]] = {}
  for row in rows:
    cells = by_shape.setdefault(tuple(row[key] for key in keys), {})
    if "num_queries" in row:
      cells[row["num_queries"]] = _rounded(row["us_per_query"])
    else:
      cells["ms"] = _rounded(row["ms"])
  lines = [
    [_size(n), *map(str, rest), cells["ms"], *(cells.get(m, "") for m in counts)]
    for (n, *rest), cells in by_shape.items()
  ]
  header = ["tokens", "width", "heads", "branch factor", "dtype", "build, ms"]
  return [
    text.paragraph(_slower(rows, counts)),
    tables.markdown(
      [*header, *(f"us per query, {m:,} {_plural(m, 'query')}" for m in counts)], lines
    ),
  ]


def maps(rows: Rows) -> list[str]:
  """The times of predictions of whole maps."""
  by_context: dict[tuple[str, int], Rows] = {}
  for row in rows:
    by_context.setdefault((row["map"], row["num_tokens"]), []).append(row)
  lines = []
  for (name, num_tokens), systems in by_context.items():
    first = systems[0]["us_per_query"]
    for row in systems:
      time = row["us_per_query"]
      title, ratio = TITLES[row["system"]], f"{time / first:.2f}x"
      error = f"{row['rmse']:.1f} {row['unit']}"
      lines.append([name, f"{num_tokens:,}", title, f"{time:,.1f}", ratio, error])
  header = ["map", "context points", "model", "us per query"]
  header.append(f"/ {TITLES[rows[0]['system']]}")
  return [tables.markdown([*header, "RMSE"], lines)]


def _slower(rows: Rows, counts: list[int]) -> str:
  """States how a read with bfloat16 compares with the first row, which has float32."""
  ratios_by_count = []
  for m in counts:
    selected = [row for row in rows if row.get("num_queries") == m]
    other = next((row for row in selected if row["dtype"] == "bfloat16"), None)
    if other is not None:
      ratio = other["us_per_query"] / selected[0]["us_per_query"]
      queries = f"{m:,} {_plural(m, 'query')}"
      ratios_by_count.append(f"{ratio:.1f} times as long for {queries}")
  if not ratios_by_count:
    return ""
  return f"With bfloat16, a read takes {text.listed(ratios_by_count)}."


def _plural(count: int, noun: str) -> str:
  return noun if count == 1 else f"{noun.removesuffix('y')}ies"

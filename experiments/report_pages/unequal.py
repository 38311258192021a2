"""Part of docs/benchmarks.md on many contexts of unequal size."""

from experiments.common import tables
from experiments.common.systems import TITLES
from experiments.report_pages import ratios

Rows = list[ratios.Row]

INTRODUCTION = (
  "All contexts are indexed and read in one compiled call, in buckets that"
  " `tca_jax.bucketing` has chosen. With one bucket, all are padded to the largest. One by"
  " one, contexts have no padding, but each shape compiles, and each call has its own"
  " overhead; this is timed on a random sample of the contexts."
)


def parts(rows: Rows) -> list[str]:
  """The throughput for each number of buckets, and one by one.

  Args:
    rows: the rows of benchmarks.contexts.

  Returns:
    The parts of the section.
  """
  if not rows:
    return []
  lines = []
  for row in rows:
    model, _, calls = row["system"].partition("/")
    bucketed = "num_buckets" in row
    lines.append(
      [
        TITLES[model],
        str(row["num_buckets"]) if bucketed else calls,
        ", ".join(map(str, row["bucket_sizes"])) if bucketed else "",
        f"{row['padding']:.0%}",
        f"{row['contexts_per_second']:,.0f}",
        f"{row['compile_seconds']:.1f}",
      ]
    )
  first = rows[0]
  about = (
    f"{first['num_contexts']:,} contexts of {first['smallest']} to {first['largest']}"
    f" tokens, {first['num_tokens']:,} tokens together, with log-uniform sizes."
  )
  header = ["model", "buckets", "tokens of a padded context", "padding"]
  header += ["contexts per second", "compilation, s"]
  return [about, tables.markdown(header, lines)]

"""docs/results.md: the quality of the models."""

from experiments.report_pages import bayesopt
from experiments.report_pages import comparison
from experiments.report_pages import large_contexts
from experiments.report_pages import relative_reads
from experiments.report_pages import streaming
from experiments.report_pages import studies
from experiments.report_pages import text
from experiments.report_pages import zero_shot
from experiments.report_pages.runs import Results


def make(results: Results) -> str:
  """Writes the text of the page."""
  return text.page(
    "Results",
    comparison.how_to_read(results),
    comparison.main_results(results),
    comparison.only_published(results),
    comparison.calibration(results),
    comparison.latents(results),
    relative_reads.section(results),
    large_contexts.section(results),
    zero_shot.section(results),
    streaming.section(results),
    bayesopt.section(results),
    studies.copying(results),
    studies.ablations(results),
    studies.regression(results),
    studies.beam_widths(results),
    studies.other_runs(results),
  )

"""Part of docs/results.md on grids of locations, which are predicted from whole maps."""

from experiments.common import tables
from experiments.common.systems import TITLES
from experiments.report_pages import runs
from experiments.report_pages import text


def parts(by_map: dict[str, list[runs.File]]) -> list[str]:
  """The time for a fine grid of predictions from the largest context.

  Args:
    by_map: the evaluations on whole maps, by data set.

  Returns:
    The parts of the section; none without such a grid.
  """
  names_of_parts = ("tree", "index_compile", "index", "read_compile", "read")
  lines, names = [], set()
  for name, files in by_map.items():
    for file in files:
      grid = file.content.get("grid")
      if not grid:
        continue
      names.add(TITLES[file.config["model"]])
      seconds = [f"{grid[f'{part}_seconds']:.1f}" for part in names_of_parts]
      cells = [name, TITLES[file.config["model"]]]
      cells += [f"{grid['num_context']:,}", f"{grid['num_queries']:,}"]
      keys = ("seam_ratio", "interpolation_seam_ratio")
      seams = ["" if grid.get(key) is None else f"{grid[key]:.2f}" for key in keys]
      lines.append([*cells, *seconds, f"{grid['seconds']:.1f}", *seams])
  if not lines:
    return []
  header = ["map", "model", "context points", "locations", "tree"]
  header += ["compilation of the build", "build", "compilation of the read", "read"]
  header += ["total", "seam ratio", "seam ratio of linear interpolation"]
  return [
    "### A grid of locations",
    text.paragraph(
      f"The table gives the seconds in which {text.listed(sorted(names))} predicts a"
      " regular grid of locations from the largest context: TCA along one path, relative"
      " TCA along several. The total includes compilation. The seam ratio is the mean jump"
      " of the predicted mean between neighbouring locations across the tree's upper eight"
      " levels of cuts, divided by that elsewhere. That of linear interpolation, which has"
      " no tree, shows how much more a map varies near the cuts."
    ),
    tables.markdown(header, lines),
  ]

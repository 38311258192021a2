"""Small files of localization data, in both layouts, for tests of Human Activity."""

import gzip

from experiments.data.human_activity import builders
from experiments.data.human_activity import recordings

START = 633790226051280329  # timestamp of the first line, in units of 100 ns
LAYOUTS = {name: x for name, x in builders.DATASETS.items() if name != "watch"}


def lines(dataset, measurements):
  """Lines of a layout, from (sequence, tag, time after START, (x, y, z), label)."""
  rows = []
  for i, (sequence, tag, timestamp, (x, y, z), label) in enumerate(measurements):
    name = recordings.TAGS[tag]
    if dataset == "uci":
      date = "27.05.2009 14:03:25:127"
      rows.append(f"{sequence},{name},{START + timestamp},{date},{x},{y},{z},{label}\n")
    else:
      rows.append(f"{i},{sequence},{name},{START + timestamp},{x},{y},{z},{label}\n")
  if dataset == "uci_excerpt":
    header = "id, sequence_name, tag_indicator, timestamp, x_c, y_c, z_c, activity\n"
    rows.insert(0, header)
  return rows


def write(folder, dataset, measurements):
  """Writes the source file of a data set."""
  text = "".join(lines(dataset, measurements))
  if dataset == "uci":
    (folder / "ConfLongDemo_JSI.txt").write_text(text)
  else:
    path = folder / "person_activity_excerpt.csv.gz"
    path.write_bytes(gzip.compress(text.encode()))


def walks(sequences, length):
  """Measurements of one row each, 30 ms apart, whose label changes in the middle."""
  labels = ("walking", "lying")
  return [
    (sequence, i % 4, 300_000 * i, (i, i / 2, 1), labels[2 * i // length])
    for sequence in sequences
    for i in range(length)
  ]


def write_small_data_sets(folder):
  """Writes both files: 5 recordings of 5 persons, and 2 of one, of 600 rows each."""
  write(folder, "uci", walks(("A01", "B03", "C05", "D02", "E04"), 600))
  write(folder, "uci_excerpt", walks(("A01", "A02"), 600))

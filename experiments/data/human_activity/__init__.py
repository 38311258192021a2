"""Human activity recognised from sensors (Sec. 4.3): data sets, segments, sampler."""

from experiments.data.human_activity.builders import DATASETS
from experiments.data.human_activity.builders import load_segments
from experiments.data.human_activity.recordings import TICKS_PER_SECOND
from experiments.data.human_activity.segments import PARTS
from experiments.data.human_activity.segments import sample
from experiments.data.human_activity.segments import SEGMENT
from experiments.data.human_activity.segments import Segments
from experiments.data.human_activity.segments import SPLITS
from experiments.data.human_activity.segments import take

__all__ = [
  "DATASETS",
  "PARTS",
  "SEGMENT",
  "SPLITS",
  "TICKS_PER_SECOND",
  "Segments",
  "load_segments",
  "sample",
  "take",
]

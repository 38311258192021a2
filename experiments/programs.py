"""The programs that train a model of a task, by name."""

from experiments import activity
from experiments import black_box
from experiments import copy_task
from experiments import gp_regression
from experiments import image_completion
from experiments import points
from experiments import surfaces
from experiments import terrain
from experiments.common.launch import Program

PROGRAMS: dict[str, Program] = {
  "activity": activity.PROGRAM,
  "black_box": black_box.PROGRAM,
  "copy_task": copy_task.PROGRAM,
  "gp_regression": gp_regression.PROGRAM,
  "image_completion": image_completion.PROGRAM,
  "points": points.PROGRAM,
  "surfaces": surfaces.PROGRAM,
  "terrain": terrain.PROGRAM,
}

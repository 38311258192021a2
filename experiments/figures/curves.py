"""Figure of learning curves."""

from etils import epath
from matplotlib import ticker
from matplotlib.figure import Figure
import numpy as np

from experiments.figures import style


def plot_curves(results: list[dict], path: epath.PathLike) -> None:
  """Draws learning curves against the number of examples and against seconds.

  Args:
    results: one dictionary per curve, with the keys "row", its name; "curve", a list of
      (examples, seconds, reward of the sampled walks), whose reward is drawn as a
      moving average over a twentieth of the curve; "accuracy", if that is the reward;
      and "config". Curves of another reward than the first one's are left out.
    path: the PNG file to write.
  """
  results = [
    r for r in results if r["config"]["reward"] == results[0]["config"]["reward"]
  ]
  figure = Figure(figsize=(12, 4.5), layout="constrained")
  panels = figure.subplots(1, 2, sharey=True)
  rewards = [_moving_average(np.array(result["curve"])[:, 2]) for result in results]
  for i, result in enumerate(results):
    examples, seconds, _ = np.array(result["curve"]).T
    for panel, x in zip(panels, (examples, seconds), strict=True):
      panel.plot(
        x,
        rewards[i],
        label=result["row"],
        color=style.RED if i == 0 else style.OTHERS[i % len(style.OTHERS)],
        linestyle=("-", "--")[i // len(style.OTHERS) % 2],
        linewidth=2.5 if i == 0 else 1.2,
        zorder=3 if i == 0 else 2,
      )
  accuracies = all("accuracy" in result for result in results)
  low, high = (
    (0, 1.02) if accuracies else (np.quantile(np.concatenate(rewards), 0.02), None)
  )
  for panel, label in zip(panels, ("examples", "seconds of training"), strict=True):
    panel.set(xlabel=label, xscale="log", ylim=(low, high))
    panel.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    panel.xaxis.set_minor_formatter(ticker.NullFormatter())
    panel.grid(alpha=0.3)
  panels[0].set_ylabel("reward in training (sampled walks)")
  figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center")
  style.save(figure, path)


def _moving_average(curve: np.ndarray) -> np.ndarray:
  """Averages the last twentieth of a curve's points, up to and including each point.

  Args:
    curve: `[n]`.

  Returns:
    `[n]`.

  >>> _moving_average(np.arange(40.0))[:4].tolist()
  [0.0, 0.5, 1.5, 2.5]
  """
  window = max(len(curve) // 20, 1)
  total = np.concatenate([[0], np.cumsum(curve)])
  end = np.arange(1, len(curve) + 1)
  start = np.maximum(end - window, 0)
  return (total[end] - total[start]) / (end - start)

"""Draws what `run --only curves` found: what a request costs beside the first point of each curve.

usage: curves_chart.py CURVES.json CHART.svg
"""

import json
import sys
from statistics import median, quantiles

from chart import COLOURS, INK, pyplot, styled


def main() -> None:
    source, target = sys.argv[1:]
    with open(source) as file:
        curves = json.load(file)["curves"]
    styled()
    figure, places = pyplot.subplots(1, len(curves), figsize=(9, 2.6), sharey=True, layout="constrained")
    for axes, (title, points), colour in zip(places, curves.items(), COLOURS.values()):
        steps = [int(step) for step in points]
        axes.axhline(1, color=INK, linewidth=0.8, linestyle=":")
        quartiles = [quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3 for ratios in points.values()]
        axes.fill_between(steps, [low for low, _, _ in quartiles], [high for _, _, high in quartiles],
                          color=colour, alpha=0.25, linewidth=0)
        axes.plot(steps, [median(ratios) for ratios in points.values()], color=colour, marker="o", markersize=3)
        axes.set_xlabel(title)
        if steps[-1] > 100:
            axes.set_xscale("log")
            axes.set_xticks(steps, [f"{step:,}" for step in steps])
            axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
    places[0].set_ylim(0, 1.6)
    places[0].set_ylabel("CPU of a request")
    figure.savefig(target, transparent=True, metadata={"Date": None})


if __name__ == "__main__":
    main()

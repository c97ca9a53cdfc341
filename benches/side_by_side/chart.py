"""Draws what `run` found: for each of the works that are to be drawn, what Doorward costs of what each peer costs.

usage: chart.py RESULTS.json CHART.svg
"""

import json
import sys

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot

# Read on white and on black.
INK = "#808080"
COLOURS = {"haproxy": "#3d8fd1", "envoy": "#b06fce", "nginx": "#3fa66b"}
STEP = 0.26


def styled() -> None:
    pyplot.rcParams.update({
        "svg.fonttype": "none", "svg.hashsalt": "side by side", "font.family": "sans-serif", "text.color": INK,
        "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK})


def main() -> None:
    source, target = sys.argv[1:]
    with open(source) as file:
        results = json.load(file)
    lines = [line for line in results["comparison"] if line["metric"] == "cpu_us" and line["work"] in results["drawn"]]
    works = list(dict.fromkeys(line["work"] for line in lines))
    if not works:
        sys.exit("nothing to draw")

    styled()
    figure, axes = pyplot.subplots(figsize=(9, 1.4 + 0.62 * len(works)), layout="constrained")
    for place, (peer, colour) in enumerate(COLOURS.items()):
        bars = [line for line in lines if line["peer"] == peer]
        heights = [works.index(line["work"]) + (place - 1) * STEP for line in bars]
        ratios = [line["ratio"] for line in bars]
        axes.barh(heights, ratios, STEP * 0.8, color=colour, label=f"of {peer}")
        axes.hlines(heights, [line["ratio_of_minima"] for line in bars], ratios, color=INK, linewidth=1.2)
        for line, height in zip(bars, heights):
            axes.annotate(f"{line['ratio']:.2f}", (0.01, height), va="center_baseline", fontsize=7, color="white")
            if line["budget"]:
                axes.vlines(line["budget"], height - STEP / 2, height + STEP / 2, color="#e07a2f", linewidth=2)
    axes.vlines([], 0, 0, color="#e07a2f", linewidth=2, label="budget")
    axes.axvline(1, color=INK, linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(works)), works)
    axes.margins(y=0.02)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("CPU time of Doorward's pair, peer's pair = 1: median, and a line to the ratio of the minima",
                    loc="right")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1 + 0.9 / len(works)), ncols=4, frameon=False)
    figure.savefig(target, transparent=True, metadata={"Date": None})


if __name__ == "__main__":
    main()

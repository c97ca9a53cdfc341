"""What was measured beside what was promised."""

from dataclasses import dataclass, field
from statistics import median
from types import ModuleType

from works import METRICS, Sample, Work

# By work, pair and round.
Results = dict[str, dict[str, list[Sample]]]


@dataclass(frozen=True)
class Line:
    """One line of the table: what a work costs, beside one peer or beside nobody."""

    work: str
    metric: str
    ours: list[float]
    budget: float | None
    peer: str | None = None
    theirs: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float | None:
        """The median of each round's ratio."""
        return median(our / their for our, their in zip(self.ours, self.theirs)) if self.peer else None

    @property
    def ratio_of_minima(self) -> float | None:
        return min(self.ours) / min(self.theirs) if self.peer else None

    @property
    def met(self) -> bool | None:
        figure = self.ratio or median(self.ours)
        return None if self.budget is None else figure <= self.budget

    def json(self) -> dict:
        return {name: getattr(self, name) for name in
                ("work", "metric", "peer", "ratio", "ratio_of_minima", "budget", "met")}

    def cell(self) -> str:
        """The ratio, or our own figure, and the budget; in bold if it is missed."""
        if self.peer:
            figure, unit = f"{self.ratio:.2f} ({self.ratio_of_minima:.2f})", ""
        else:
            digits, unit = (0 if min(self.ours) >= 100 else 1), " " + METRICS[self.metric][1]
            figure = f"{median(self.ours):,.{digits}f} ({min(self.ours):,.{digits}f}){unit}"
        budget = "" if self.budget is None else f", ≤ {self.budget:g}{unit}"
        return f"**{figure}{budget}**" if self.met is False else figure + budget


def compare(works: list[Work], results: Results) -> list[Line]:
    lines = []
    for work in works:
        samples = results[work.title]
        budgets = {(budget.metric, budget.peer): budget.factor for budget in work.budgets}
        for metric in METRICS:
            # Tails are compared where a budget asks: at a load that all can bear.
            if metric not in samples["doorward"][0] or metric == "p99_us" and (metric, "haproxy") not in budgets:
                continue
            figures = {name: [sample[metric] for sample in taken] for name, taken in samples.items()}
            ours = figures.pop("doorward")
            lines.append(Line(work.title, metric, ours, budgets.get((metric, None))))
            lines += [Line(work.title, metric, ours, budgets.get((metric, peer)), peer, theirs)
                      for peer, theirs in figures.items()]
    return lines


def report(lines: list[Line], machine: dict, pairs: dict[str, ModuleType]) -> None:
    """The table, as Markdown: a row for each work and metric, a column for each pair."""
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for line in lines:
        cells.setdefault((line.work, METRICS[line.metric][0]), {})[line.peer or "doorward"] = line.cell()
    rows = [["work", "", "Doorward", *(f"of {name}" for name in pairs if name != "doorward")]]
    rows += [[*titles, *(row.get(name, "") for name in pairs)] for titles, row in cells.items()]
    widths = [max(map(len, column)) for column in zip(*rows)]
    rows.insert(1, ["-" * width for width in widths])
    for row in rows:
        print("|", " | ".join(cell.ljust(width) for cell, width in zip(row, widths)), "|")

    judged = [line.met for line in lines if line.met is not None]
    print(f"""
{sum(judged)} of {len(judged)} budgets are met; what is missed is in bold. Doorward's own figures are medians, and in
brackets the least, of {machine['rounds']} rounds of {machine['seconds']} s. Beside them is the median of each round's
ratio, and in brackets the ratio of the least. {machine['cpus']} CPUs, {machine['machine']}, Linux {machine['kernel']}.
""")
    for name, pair in pairs.items():
        print(f"- {name} {machine['versions'][name]}: {pair.NOTE}")

"""Asks a Prometheus server each query of a Grafana dashboard, as its panels do: dashboard.py URL FILE

Each must be understood. One whose metrics are all there must have an answer: a label that is not there, or is called
otherwise, gives none. Says how many had one.
"""

import json
import re
import sys
import urllib.error
import urllib.parse
import urllib.request

VARIABLES = {"$__rate_interval": "1m", "$instance": ".*", "$service": ".*"}
METRIC = re.compile(r"\b(?:doorward|process)_[a-z_]+\b")


def get(server: str, path: str, **query: str) -> list:
    url = f"{server}/api/v1/{path}?{urllib.parse.urlencode(query)}"
    try:
        with urllib.request.urlopen(url) as answer:
            data = json.load(answer)["data"]
    except urllib.error.HTTPError as error:
        sys.exit(f"{query}: {json.load(error)['error']}")
    return data if isinstance(data, list) else data["result"]


def queries(board: dict) -> list[tuple[str, str]]:
    annotations = [(one["name"], one["expr"]) for one in board["annotations"]["list"]]
    return annotations + [
        (panel["title"], target["expr"]) for panel in board["panels"] for target in panel.get("targets", [])
    ]


def main(server: str, file: str) -> None:
    with open(file) as opened:
        board = json.load(opened)
    known = set(get(server, "label/__name__/values"))
    answered, unknown = 0, 0
    for title, query in queries(board):
        for name, value in VARIABLES.items():
            query = query.replace(name, value)
        if left := re.search(r"\$\w+", query):
            sys.exit(f"{title}: {left.group()} is no variable of the dashboard")
        found = get(server, "query", query=query)
        if found:
            answered += 1
        elif METRIC.findall(query) and set(METRIC.findall(query)) <= known and title != "Policy put in force":
            sys.exit(f"{title}: no answer to {query}")
        else:
            unknown += 1
    for variable in board["templating"]["list"]:
        if wanted := re.fullmatch(r"label_values\((\w+), (\w+)\)", variable.get("definition", "")):
            if not get(server, f"label/{wanted[2]}/values", **{"match[]": wanted[1]}):
                sys.exit(f"the variable {variable['name']} has no values")
    print(f"{answered} queries answered, {unknown} of what has not happened")


main(*sys.argv[1:])

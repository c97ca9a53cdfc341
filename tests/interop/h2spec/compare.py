"""Holds a JUnit report of h2spec against the list of what is known not to pass: every failure is on it, and
nothing on it passes. Says how many cases passed."""

import sys
import xml.etree.ElementTree as ElementTree


def main(report: str, known: str) -> int:
    expected = {}
    with open(known, encoding="utf-8") as lines:
        for line in lines:
            if line.strip() and not line.startswith("#"):
                case, _, reason = line.strip().partition(" | ")
                if not reason:
                    sys.exit(f"{known}: no reason: {line.strip()}")
                expected[case] = reason
    failed, passed = set(), 0
    for case in ElementTree.parse(report).iter("testcase"):
        if case.find("failure") is None and case.find("error") is None:
            passed += 1
        else:
            failed.add(f"{case.get('package')} {case.get('classname')}")
    for case in sorted(failed - expected.keys()):
        print(f"fails, and is not known to: {case}")
    for case in sorted(expected.keys() - failed):
        print(f"known to fail, and does not: {case}")
    if failed != expected.keys() or not passed:
        return 1
    print(f"{passed} cases pass, {len(failed)} fail as known")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

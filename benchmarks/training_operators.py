"""Which forms of operators can be trained, at each opset from 11 to 24: a table of those that cannot, and a sum.

`python benchmarks/training_operators.py [PART OF A TITLE ...]`; the forms are those of `tests/operator_forms.py`.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from operator_forms import FORMS, OLD, fault, network


def main(parts: list[str]) -> None:
    trained = tried = 0
    forms = [form for form in (*FORMS, *OLD) if not parts or any(part in form.title for part in parts)]
    untrained = 0
    for form in forms:
        opsets = range(form.since, form.until + 1) if form in OLD else form.opsets()
        reasons = {opset: fault(network(form, opset)) for opset in opsets}
        bad = [opset for opset, reason in reasons.items() if reason]
        tried, trained, untrained = tried + len(reasons), trained + len(reasons) - len(bad), untrained + bool(bad)
        if bad:
            print(f"{form.title:<40} opsets {', '.join(map(str, bad))}: {reasons[bad[0]]}")
    print(f"{len(forms)} forms, {untrained} of them not at every opset; {trained} of {tried} networks train")


if __name__ == "__main__":
    main(sys.argv[1:])

"""AutoARIMA and AutoETS of statsforecast on bins that others have forecast already: reads what they stated, fits anew at
evenly spaced bins of the counted part, and scores everybody on those bins alone.

usage: fitted.py STATED.json ROWS.json
"""

import json
import sys
import warnings

import numpy
from statsforecast.models import AutoARIMA, AutoETS

QUANTILES = [0.5, 0.9, 0.99]
# The upper ends of these central intervals are the upper two quantiles.
LEVELS = [80, 98]
# Bins at which a model is fitted, and the bins before each that it is fitted to.
ORIGINS = 40
HISTORY = 300


def pinball(quantile, count, stated):
    return max(quantile * (count - stated), (quantile - 1) * (count - stated))


def stated_by(model, counts, ahead):
    """Quantiles of the bin so many ahead. A series that a model cannot fit keeps its last value."""
    try:
        found = model.forecast(y=counts, h=ahead, level=LEVELS)
        columns = ["mean"] + [f"hi-{level}" for level in LEVELS]
        upper = [numpy.asarray(found[column])[-1] for column in columns]
        if numpy.all(numpy.isfinite(upper)):
            return [max(value, 0.0) for value in upper]
    except Exception as error:  # what it raises differs from series to series
        print(f"    {type(model).__name__} failed: {error}", file=sys.stderr)
    return [float(counts[-1])] * 3


def score(series):
    counts = numpy.array(series["counts"], dtype=float)
    aheads = sorted({statement["ahead"] for statement in series["statements"]})
    rows = []
    for ahead in aheads:
        bins = numpy.unique(numpy.linspace(series["from"], len(counts) - 1, ORIGINS).astype(int))
        stated = {"AutoARIMA": {}, "AutoETS": {}}
        for at in bins:
            history = counts[max(0, at - ahead + 1 - HISTORY) : at - ahead + 1]
            for name, model in (("AutoARIMA", AutoARIMA()), ("AutoETS", AutoETS(model="ZZN"))):
                stated[name][at] = stated_by(model, history, ahead)
        for statement in series["statements"]:
            if statement["ahead"] == ahead:
                stated[statement["method"]] = {at: statement["stated"][at] for at in bins}
        for method, by_bin in stated.items():
            losses = [
                sum(pinball(q, counts[at], by_bin[at][place]) for at in bins) / len(bins) / series["bin_s"]
                for place, q in enumerate(QUANTILES)
            ]
            horizon_s = ahead * series["bin_s"]
            rows.append({"trace": series["name"], "horizon_s": horizon_s, "method": method, "pinball": losses})
        print(f"    {series['name']}: {ahead * series['bin_s']:.0f} s ahead", file=sys.stderr)
    return rows


def main():
    warnings.filterwarnings("ignore")
    with open(sys.argv[1]) as stated:
        everything = json.load(stated)
    rows = [row for series in everything for row in score(series)]
    with open(sys.argv[2], "w") as out:
        json.dump(rows, out)


main()

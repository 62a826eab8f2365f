"""Runs in the environment of this folder: a JSON series a line in, a JSON object of the programs' figures a line out.

A request is `{"times": [minutes since 2000-01-01 00:00 local, ...], "glucose": [mg/dL, ...], "interval": minutes,
"parts": [...]}`, with the parts that `reference_metrics.py` lists; the answer
`{"figures": {metric: {program: value or null}}}` or `{"error": text}`. Readings lie on multiples of `interval`; or at
most one lies in each, and then iglu's grid figures are those of interpolated readings.

Programs are `iglu`, `agata` and `agata_our_rule`. What is asked, and not left to the program's default:

* iglu's days run from 00:05 to 24:00, and its grid leaves out a reading on the first midnight. Where it uses its grid
  it is given times one interval later, which makes its days ours and changes nothing else. (But a series must not start
  in the last interval of a day: then that would be the first midnight.)
* agata leaves the bounds of a range to the outer range; `agata_our_rule` is its function for given ranges with ours.
* agata's MODD and CONGA hold each reading against all others; they are asked up to six days.
"""

import contextlib
import io
import json
import math
import sys
import warnings
from typing import Any

import iglu_python as iglu
import numpy as np
import pandas as pd
from py_agata import risk, time_in_ranges, variability

ORIGIN = pd.Timestamp("2000-01-01")
QUANTILES = {
    "min_mg_dl": 0,
    "p5_mg_dl": 5,
    "p10_mg_dl": 10,
    "p25_mg_dl": 25,
    "p75_mg_dl": 75,
    "p90_mg_dl": 90,
    "p95_mg_dl": 95,
    "max_mg_dl": 100,
}

Figures = dict[str, dict[str, float]]


def iglu_series(minutes: np.ndarray, glucose: np.ndarray) -> pd.Series:
    return pd.Series(glucose, index=ORIGIN + pd.to_timedelta(minutes, unit="min"))


def iglu_figures(minutes: np.ndarray, glucose: np.ndarray, interval: int) -> Figures:
    def series(shift: int = 0) -> pd.Series:
        # A new one for each call: some functions change the index they are given.
        return iglu_series(minutes + shift, glucose)

    values = series()
    below = iglu.below_percent(values, targets_below=[54, 70])
    above = iglu.above_percent(values, targets_above=[180, 250])
    ranges = iglu.in_range_percent(values, target_ranges=[[70, 180], [70, 140]])
    quantiles = iglu.quantile_glu(values, quantiles=list(QUANTILES.values()))
    figures: Figures = {
        "mean_mg_dl": {"iglu": iglu.mean_glu(values)},
        "median_mg_dl": {"iglu": iglu.median_glu(values)},
        "sd_mg_dl": {"iglu": iglu.sd_glu(values)},
        "cv_pct": {"iglu": iglu.cv_glu(values)},
        "iqr_mg_dl": {"iglu": iglu.iqr_glu(values)},
        **{metric: {"iglu": value} for metric, value in zip(QUANTILES, quantiles, strict=True)},
        "time_very_low_pct": {"iglu": below["below_54"]},
        "time_low_pct": {"iglu": below["below_70"] - below["below_54"]},
        "time_below_range_pct": {"iglu": below["below_70"]},
        "time_in_range_pct": {"iglu": ranges["in_range_70_180"]},
        "time_in_tight_range_pct": {"iglu": ranges["in_range_70_140"]},
        "time_above_range_pct": {"iglu": above["above_180"]},
        "time_high_pct": {"iglu": above["above_180"] - above["above_250"]},
        "time_very_high_pct": {"iglu": above["above_250"]},
        "gmi_pct": {"iglu": iglu.gmi(values)},
        "estimated_a1c_adag_pct": {"iglu": iglu.ea1c(values)},
        "gri": {"iglu": iglu.gri(values)},
        "lbgi": {"iglu": iglu.lbgi(values)},
        "hbgi": {"iglu": iglu.hbgi(values)},
        "adrr": {"iglu": iglu.adrr(values)},
        "j_index": {"iglu": iglu.j_index(values)},
    }
    if len(minutes) < 2:
        return figures
    components = iglu.sd_measures(series(interval), dt0=interval)
    figures |= {
        "sd_within_day_mg_dl": {"iglu": components["SDw"]},
        "sd_between_day_mg_dl": {"iglu": components["SDdm"]},
        "mag_mg_dl_per_hour": {"iglu": iglu.mag(series(interval), dt0=interval)},
    }
    # These take the most frequent difference for their grid, and cannot be told another.
    if int(pd.Series(minutes).diff().mode().iloc[0]) == interval:
        figures["gvp_pct"] = {"iglu": iglu.gvp(series(interval))}
        figures["modd_mg_dl"] = {"iglu": iglu.modd(series(interval))}
        for hours in (1, 2, 4, 24):
            figures[f"conga_{hours}h_mg_dl"] = {"iglu": iglu.conga(series(interval), n=hours)}
    return figures


def iglu_mage(minutes: np.ndarray, glucose: np.ndarray, interval: int) -> Figures:
    if len(minutes) < 2:
        return {}
    return {"mage_mg_dl": {"iglu": iglu.mage(iglu_series(minutes + interval, glucose))}}


def agata_data(minutes: np.ndarray, glucose: np.ndarray, interval: int) -> pd.DataFrame:
    slots = (minutes // interval).astype(int)
    grid = np.full(slots[-1] - slots[0] + 1, np.nan)
    grid[slots - slots[0]] = glucose
    times = ORIGIN + pd.to_timedelta(interval * np.arange(slots[0], slots[-1] + 1), unit="min")
    return pd.DataFrame({"t": times, "glucose": grid})


def agata_figures(minutes: np.ndarray, glucose: np.ndarray, interval: int) -> Figures:
    data = agata_data(minutes, glucose, interval)
    given = time_in_ranges.time_in_given_range
    very_low = time_in_ranges.time_in_given_below_range(data, 54.0)
    low = given(data, 54.0, 70.0, include_th_l=True, include_th_h=False)
    high = given(data, 180.0, 250.0, include_th_l=False, include_th_h=True)
    very_high = time_in_ranges.time_in_given_above_range(data, 250.0)
    return {
        "mean_mg_dl": {"agata": variability.mean_glucose(data)},
        "median_mg_dl": {"agata": variability.median_glucose(data)},
        "sd_mg_dl": {"agata": variability.std_glucose(data)},
        "cv_pct": {"agata": variability.cv_glucose(data)},
        "iqr_mg_dl": {"agata": variability.iqr_glucose(data)},
        "time_very_low_pct": {"agata": time_in_ranges.time_in_l2_hypoglycemia(data), "agata_our_rule": very_low},
        "time_low_pct": {"agata": time_in_ranges.time_in_l1_hypoglycemia(data), "agata_our_rule": low},
        "time_below_range_pct": {
            "agata": time_in_ranges.time_in_hypoglycemia(data),
            "agata_our_rule": time_in_ranges.time_in_given_below_range(data, 70.0),
        },
        "time_in_range_pct": {
            "agata": time_in_ranges.time_in_target(data),
            "agata_our_rule": given(data, 70.0, 180.0, include_th_l=True, include_th_h=True),
        },
        "time_in_tight_range_pct": {
            "agata": time_in_ranges.time_in_tight_target(data),
            "agata_our_rule": given(data, 70.0, 140.0, include_th_l=True, include_th_h=True),
        },
        "time_above_range_pct": {
            "agata": time_in_ranges.time_in_hyperglycemia(data),
            "agata_our_rule": time_in_ranges.time_in_given_above_range(data, 180.0),
        },
        "time_high_pct": {"agata": time_in_ranges.time_in_l1_hyperglycemia(data), "agata_our_rule": high},
        "time_very_high_pct": {"agata": time_in_ranges.time_in_l2_hyperglycemia(data), "agata_our_rule": very_high},
        "gmi_pct": {"agata": variability.gmi(data)},
        "gri": {"agata": risk.gri(data)},
        "lbgi": {"agata": risk.lbgi(data)},
        "hbgi": {"agata": risk.hbgi(data)},
        "adrr": {"agata": risk.adrr(data)},
        "j_index": {"agata": variability.j_index(data)},
        "sd_within_day_mg_dl": {"agata": variability.sdw_index(data)},
        "sd_between_day_mg_dl": {"agata": variability.sddm_index(data)},
    }


def agata_pairs(minutes: np.ndarray, glucose: np.ndarray, interval: int) -> Figures:
    if minutes[-1] - minutes[0] > 6 * 1440:
        return {}
    data = agata_data(minutes, glucose, interval)
    return {"modd_mg_dl": {"agata": variability.modd(data)}, "conga_4h_mg_dl": {"agata": variability.conga(data)}}


def agata_mage(minutes: np.ndarray, glucose: np.ndarray, interval: int) -> Figures:
    data = agata_data(minutes, glucose, interval)
    if len(data) > 3:
        with contextlib.suppress(IndexError, ValueError):  # its turning points need two in each day
            return {"mage_mg_dl": {"agata": variability.mage_index(data)}}
    return {}


PARTS = {
    "iglu": iglu_figures,
    "iglu_mage": iglu_mage,
    "agata": agata_figures,
    "agata_pairs": agata_pairs,
    "agata_mage": agata_mage,
}


def answer(request: dict[str, Any]) -> dict[str, Any]:
    minutes = np.array(request["times"], dtype=np.float64)
    glucose = np.array(request["glucose"], dtype=np.float64)
    interval = int(request["interval"])
    figures: Figures = {}
    for part in request["parts"]:
        for metric, values in PARTS[part](minutes, glucose, interval).items():
            figures.setdefault(metric, {}).update(values)
    return {
        "figures": {
            metric: {program: None if math.isnan(value) else float(value) for program, value in values.items()}
            for metric, values in figures.items()
        }
    }


def main() -> None:
    warnings.simplefilter("ignore")
    for line in sys.stdin:
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # the programs print warnings
                reply = answer(json.loads(line))
        except Exception as error:
            # Whatever it is, the test that asked is told.
            reply = {"error": f"{type(error).__name__}: {error}"}
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()

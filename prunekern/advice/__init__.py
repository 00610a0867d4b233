"""Advice: which pattern, storage and layers pay, within a budget of quality.

speed.py        how long a layer takes in each storage: measured, or modelled for a GPU
sensitivity.py  what pruning one layer alone does to predictions: measured
choose.py       the plan with most gain for a budget; pure functions of tables
advise.py       all of it, and the plan carried out, measured and undone
plan.py, report.py, apply.py    what comes of it, in words, and on a model
"""

from prunekern.advice.advise import advise
from prunekern.advice.apply import apply
from prunekern.advice.plan import LayerPlan, Plan

__all__ = ["LayerPlan", "Plan", "advise", "apply"]

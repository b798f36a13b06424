"""Long runs: from files to a store, a model, predictions."""

from pyfeat.jobs._collect import Paths, collect, is_there
from pyfeat.jobs._collect_texts import Collected, collect_inputs, collect_texts, modality_of_space
from pyfeat.jobs._extract import extract
from pyfeat.jobs._fit import FitSummary, choose_space, fit
from pyfeat.jobs._import import import_files
from pyfeat.jobs._index import Neighbour, build_index, search_index
from pyfeat.jobs._options import JobOptions
from pyfeat.jobs._plan import Estimate, Plan, plan
from pyfeat.jobs._predict import Prediction, PredictSummary, predict
from pyfeat.jobs._quickstart import QuickstartReport, quickstart
from pyfeat.jobs._recompute import Comparison, Recomputed, recompute
from pyfeat.jobs._summary import ExtractSummary, JobInterrupted, Quarantined

__all__ = [
    "Collected",
    "Comparison",
    "Estimate",
    "ExtractSummary",
    "FitSummary",
    "JobInterrupted",
    "JobOptions",
    "Neighbour",
    "Paths",
    "Plan",
    "PredictSummary",
    "Prediction",
    "Quarantined",
    "QuickstartReport",
    "Recomputed",
    "build_index",
    "choose_space",
    "collect",
    "collect_inputs",
    "collect_texts",
    "extract",
    "fit",
    "import_files",
    "is_there",
    "modality_of_space",
    "plan",
    "predict",
    "quickstart",
    "recompute",
    "search_index",
]

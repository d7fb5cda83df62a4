"""Reporting: what a person sees of a run."""

from equidial.reporting._pictures import DialPictures, dial_pictures
from equidial.reporting._report import write_diagnosis, write_report
from equidial.reporting._runs import DIAGNOSIS_FILE, Run, read_run
from equidial.reporting._studies import write_study
from equidial.reporting._sweep import write_sweep
from equidial.reporting._table import write_table

__all__ = [
    "DIAGNOSIS_FILE",
    "DialPictures",
    "Run",
    "dial_pictures",
    "read_run",
    "write_diagnosis",
    "write_report",
    "write_study",
    "write_sweep",
    "write_table",
]

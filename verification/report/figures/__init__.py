"""The figures of the report, each a group of small panels that wrap on a narrow screen."""

from verification.report.figures.alarms import alarm_figure
from verification.report.figures.cost import cost_figure, precision_figure
from verification.report.figures.coverage import coverage_figure
from verification.report.figures.heatmaps import variance_figure, z_figure
from verification.report.figures.rmse import rmse_figure
from verification.report.figures.style import FigureGroup, Mark, Panel

__all__ = [
    "FigureGroup",
    "Mark",
    "Panel",
    "alarm_figure",
    "cost_figure",
    "coverage_figure",
    "precision_figure",
    "rmse_figure",
    "variance_figure",
    "z_figure",
]

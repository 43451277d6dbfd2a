"""Challengers on numpy, their quantiles, scores and calibration: everything of forecasting that looks back for days.

Pure functions of values and one explicit state, as in `core`, but numpy may be used: imported only where it is
installed, which is the forecast image, the simulator, the command line and benchmarks.
"""

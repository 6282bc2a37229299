"""Optuna studies, trial workers, early discarding, ensembles, calibrated uncertainty."""

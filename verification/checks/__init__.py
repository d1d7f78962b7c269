"""Checks of an estimator in three tiers: D deterministic, P law of the probes, S sampling."""

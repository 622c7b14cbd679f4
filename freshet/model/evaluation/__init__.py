"""Evaluation: rankings of the full catalogue in a window of time, of every system that a shop could pick instead"""

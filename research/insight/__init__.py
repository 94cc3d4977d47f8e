"""Insight: why a run goes as it goes, what differs between runs, models for other tools."""

"""Retraining: recipes, replicas, banks of retrained models."""

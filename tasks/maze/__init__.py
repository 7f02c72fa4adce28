"""Mazes: find the shortest path that a fixed search order prefers."""

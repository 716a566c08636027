"""Recipes behind the shipped weights: resumable, on a CPU or a GPU, from nothing but the world."""
